"""PyTorch's expandable segments: on where a copy is trained, off where memory is handed on.

They avoid the fragmentation that micro-batches of changing length cause. But a buffer that another
process is to open (CUDA IPC) must be of an ordinary segment, and vLLM's sleep mode, which maps and
unmaps memory itself, does not work with them (before 0.28 it refuses).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

KEY = "expandable_segments"
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The new name and the old one, of which torch reads the first that is set."""


def with_segments(conf: str, expandable: bool) -> str:
    """The allocator's settings with this one changed and all others kept: what is set replaces what
    was there, as a whole.

    Example: `with_segments("max_split_size_mb:128", True)` is
    "max_split_size_mb:128,expandable_segments:True".
    """
    kept = [part for part in conf.split(",") if part.strip() and part.split(":")[0].strip() != KEY]
    return ",".join([*kept, f"{KEY}:{expandable}"])


def allocator_conf() -> str:
    """The settings that this process was started with."""
    return next((os.environ[name] for name in VARIABLES if os.environ.get(name)), "")


def expand_segments() -> None:
    """Turn them on in a process that trains, unless its environment says something of them."""
    if torch.cuda.is_available() and KEY not in allocator_conf():
        _set(True)


@contextmanager
def ordinary_segments() -> Iterator[None]:
    """Inside, what is allocated can be opened by another process."""
    if not torch.cuda.is_available():
        yield
        return
    _set(False)
    try:
        yield
    finally:
        _set(f"{KEY}:False" not in allocator_conf())


def without_segments() -> None:
    """Before a process uses its GPU: leave them off, for an engine that sleeps."""
    for name in VARIABLES:
        if KEY in os.environ.get(name, ""):
            os.environ[name] = with_segments(os.environ[name], False)


def _set(expandable: bool) -> None:
    torch._C._accelerator_setAllocatorSettings(with_segments(allocator_conf(), expandable))
