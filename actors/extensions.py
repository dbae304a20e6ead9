"""DeepSpeed's compiled extensions, built so that a killed process cannot stop later ones.

PyTorch guards such a build with a file that exists while it is held, and waits for as long as the
file is there: a process killed in that moment makes every later one wait for ever. Here the
builds have a folder of their own, under a lock that the system frees with its holder, so that a
file found while holding it is a dead process's, and can go.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def load_extensions() -> None:
    """Build what DeepSpeed's collectives need, or load what an earlier process built.

    DeepSpeed keeps what a process has loaded, so its own loading builds nothing afterwards.
    Compiles for half a minute or more where nothing is built yet. `TORCH_EXTENSIONS_DIR` names
    another folder than `~/.cache/torch_extensions`.
    """
    from deepspeed.comm.torch import build_shm_op

    with own_builds("quartet"):
        build_shm_op()


def load_disk_extension() -> None:
    """The same for what reads and writes optimiser states on a disk; compiles for minutes."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    # Apart, so that nobody who does without has to wait for it.
    with own_builds("quartet-disk"):
        AsyncIOBuilder().load()


def load_adam_extension() -> None:
    """The same for Adam in host memory, which DeepSpeed compiles where a GPU's states are there."""
    from deepspeed.ops.op_builder import CPUAdamBuilder

    with own_builds("quartet-adam"):
        CPUAdamBuilder().load()


@contextmanager
def own_builds(name: str) -> Iterator[None]:
    """Inside, extensions are built and found in `name`, one process at a time; there, each
    environment has a folder of its own.
    """
    import deepspeed
    import torch

    previous = os.environ.get("TORCH_EXTENSIONS_DIR")
    # One folder per environment: sources at another place would be compiled again at every change.
    environment = f"{deepspeed.__file__} {deepspeed.__version__} {torch.__version__}"
    key = hashlib.sha256(environment.encode()).hexdigest()[:12]
    folder = Path(previous or "~/.cache/torch_extensions").expanduser() / name / key
    with build_folder(folder):
        # Only for the build: what else the process compiles keeps its place.
        os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
        try:
            yield
        finally:
            if previous is None:
                del os.environ["TORCH_EXTENSIONS_DIR"]
            else:
                os.environ["TORCH_EXTENSIONS_DIR"] = previous


@contextmanager
def build_folder(folder: Path) -> Iterator[None]:
    """Hold `folder` alone, without the lock files of dead processes."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "held").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for stale in folder.glob("*/lock"):
            stale.unlink()
        yield
