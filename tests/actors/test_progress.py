"""Notes and stacks of a process, read by another one."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from actors.progress import SIGNAL, WIDTH, note, read_note

PROGRAM = """
import sys, time
from pathlib import Path
from actors.progress import note, watch_this_process

def stuck_here():
    time.sleep(60)

watch_this_process(Path(sys.argv[1]), Path(sys.argv[2]))
note("x" * 500)
note("took step 3")
print("ready", flush=True)
stuck_here()
"""


def test_a_stuck_process_can_be_read(tmp_path):
    notes, stacks = tmp_path / "in" / "a.note", tmp_path / "in" / "a.stacks"
    command = [sys.executable, "-c", PROGRAM, str(notes), str(stacks)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ)) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        stamp, text = read_note(notes)
        assert text == "took step 3" and abs(time.time() - stamp) < 60
        assert notes.stat().st_size == WIDTH
        until = time.monotonic() + 20
        while "stuck_here" not in stacks.read_text() and time.monotonic() < until:
            os.kill(process.pid, SIGNAL)  # the first may come before it is stuck
            time.sleep(0.1)
        process.kill()
    assert "in stuck_here" in stacks.read_text()


def test_a_process_that_nobody_watches_writes_nothing():
    note("nowhere")
