"""Freed memory is kept and used again, and goes back when it is asked for; in processes of their
own, since these are settings of a whole one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, resource, sys
from pathlib import Path
from actors.process_settings import keep_freed_memory, return_freed_memory

def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

def touch(megabytes):
    block = bytearray(b"1") * (megabytes << 20)
    del block

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
size = int(sys.argv[2])
touch(size)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch(size)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
held = pages()
return_freed_memory()
print(json.dumps({"kept": kept, "faults": faults, "returned": held - pages()}))
"""
PAGES = 64 * 256
"""Of 64 MiB."""


def run(word: str, size: int = 64, **environment: str) -> dict[str, Any]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, word, str(size)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**inherited, **environment},
    )
    return json.loads(done.stdout)


def test_a_large_block_that_was_freed_is_used_again():
    left_alone, kept = run("leave"), run("keep")
    assert left_alone["faults"] >= 5 * PAGES * 0.9  # every page anew, five times
    assert kept["kept"] is True and kept["faults"] < 0.1 * PAGES


def test_what_is_kept_goes_back_when_asked():
    assert run("keep")["returned"] >= 0.9 * PAGES


def test_the_environments_own_choice_stays():
    found = run("keep", MALLOC_MMAP_THRESHOLD_="65536")
    assert found["kept"] is False and found["faults"] >= 5 * PAGES * 0.9


def test_threads_are_set_with_it():
    program = (
        "import torch; from actors.process_settings import settle; settle(3); "
        "print(torch.get_num_threads()); settle(None); print(torch.get_num_threads())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["3", "3"]
