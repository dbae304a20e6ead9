"""What every actor sets of its process: threads, and how freed memory is kept.

glibc maps a block above a threshold (it adapts, up to 32 MiB) anew each time and unmaps it when it
is freed, so that large activations and logits cost a page fault for every 4 KiB, in every forward.
Blocks below `KEPT_BYTES` are kept instead, and used again.
"""

from __future__ import annotations

import ctypes
import os

KEPT_BYTES = 2**30
"""Blocks up to this size come from the heap; more than this that is free at its end goes back."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_OWN_CHOICES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def settle(num_threads: int | None) -> None:
    """Set this process up; `num_threads` None leaves torch's own."""
    if num_threads:
        import torch

        torch.set_num_threads(num_threads)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Have malloc use large blocks again. Returns whether it does: not without glibc, nor where the
    environment says something else.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in _OWN_CHOICES):
        return False
    # In this order: a threshold for giving back alone would stop the other one from adapting.
    return bool(mallopt(_MMAP_THRESHOLD, KEPT_BYTES) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES))


def return_freed_memory() -> None:
    """Give back to the system what malloc keeps, wherever it is in the heap; not without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
