"""Folders for swapped states: each process has its own, and the dead leave none for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from actors.swap_folder import swap_folder

ROOT = Path(__file__).parents[2]
DIES = """
import os, sys
from pathlib import Path
from actors.swap_folder import swap_folder
making = swap_folder(Path(sys.argv[1]), "policy")
folder = making.__enter__()
(folder / "states").write_text("many")
print(folder, flush=True)
if sys.argv[2] == "lives":
    sys.stdin.read()
os._exit(1)
"""


def start(parent: Path, fate: str) -> tuple[subprocess.Popen, Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", DIES, str(parent), fate],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_two_copies_have_two_folders(tmp_path):
    with swap_folder(tmp_path, "policy") as policy:
        with swap_folder(tmp_path, "critic") as critic:
            assert policy != critic and policy.is_dir() and critic.is_dir()
        assert policy.is_dir() and not critic.exists()
    assert not policy.exists()


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path):
    (tmp_path / "mine.txt").write_text("of the user")
    living, kept = start(tmp_path, "lives")
    dead, left = start(tmp_path, "dies")
    dead.wait(60)
    assert left.is_dir()
    with swap_folder(tmp_path, "policy") as own:
        assert not left.exists() and (kept / "states").is_file() and own.is_dir()
    assert (tmp_path / "mine.txt").is_file()
    living.communicate("", timeout=60)
