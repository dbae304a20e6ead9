"""A process's own folder for the optimiser states that DeepSpeed keeps on a disk.

DeepSpeed names its files by the numbers of tensors in a process, so policy and critic in one folder
would write into each other's states. Nobody deletes what a killed process leaves, 16 bytes for each
parameter: a folder is under a lock that the system frees with its holder, and the next process to
make one in the same place takes away those that nobody holds.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from actors.extensions import load_disk_extension
from actors.train_spec import TrainSpec

PREFIX = "quartet-swap-"


@contextmanager
def swapping(spec: TrainSpec) -> Iterator[TrainSpec]:
    """What DeepSpeed needs for a disk: its access, compiled, and `spec` with a folder of its own in
    `spec.nvme_path`, which is deleted with all in it at the end.
    """
    assert spec.nvme_path is not None, "nvme_path: no folder was given"
    load_disk_extension()
    with swap_folder(Path(spec.nvme_path), spec.role) as folder:
        yield replace(spec, nvme_path=str(folder))


@contextmanager
def swap_folder(parent: Path, role: str) -> Iterator[Path]:
    """A new folder in `parent`, until the end or that of the process."""
    with _alone(parent):
        for other in parent.glob(f"{PREFIX}*"):
            _remove_if_left(other)
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{role}-", dir=parent))
        held = (folder / "held").open("w")
        fcntl.flock(held, fcntl.LOCK_EX)
    with held:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """One process at a time: a folder that was just made is not held yet."""
    with (parent / ".quartet-swap").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_if_left(folder: Path) -> None:
    # What cannot be read or deleted is another user's.
    try:
        with (folder / "held").open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    except OSError:
        return
