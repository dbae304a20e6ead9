"""A process killed while it builds an extension does not stop the next one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from actors.extensions import build_folder

HOLDER = """
import pathlib, sys, time
from actors.extensions import build_folder
folder = pathlib.Path(sys.argv[1])
with build_folder(folder):
    (folder / "deepspeed_shm_comm" / "lock").touch()
    print("holding", flush=True)
    time.sleep(60)
"""

WAITER = """
import pathlib, sys
from actors.extensions import build_folder
with build_folder(pathlib.Path(sys.argv[1])):
    print("got it", flush=True)
"""


def start(script: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_the_lock_file_of_a_dead_process_is_removed(tmp_path: Path) -> None:
    stale = tmp_path / "deepspeed_shm_comm" / "lock"
    stale.parent.mkdir()
    stale.touch()
    with build_folder(tmp_path):
        assert not stale.exists()


def test_a_live_holder_is_waited_for_and_a_killed_one_is_not(tmp_path: Path) -> None:
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    holder = start(HOLDER, tmp_path)
    assert holder.stdout is not None and holder.stdout.readline() == "holding\n"
    waiter = start(WAITER, tmp_path)
    try:
        time.sleep(1.0)
        assert waiter.poll() is None
        assert lock.exists(), "the lock of a live process was taken"
        holder.kill()
        out, _ = waiter.communicate(timeout=30)
        assert out == "got it\n"
        assert not lock.exists()
    finally:
        for process in (holder, waiter):
            process.kill()
            process.communicate()
