"""What a process's allocator keeps goes back to the device that it shares with other processes.

PyTorch keeps freed memory for the next tensor of the same process. To every other process on the
card it is as good as taken, so that a copy which has left must say so.
"""

from __future__ import annotations

import gc

import torch

from actors.process_settings import return_freed_memory


def give_back() -> int:
    """Return the allocator's unused memory to the device. Returns the bytes that a GPU got; where
    this process has not used one, the host gets what was freed.
    """
    if not torch.cuda.is_initialized():
        return_freed_memory()
        return 0
    before = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    return before - torch.cuda.memory_reserved()


def give_back_dead() -> int:
    """The same after what is dead and in reference cycles has been freed."""
    gc.collect()
    return give_back()


class GivesBack:
    """An actor that can be asked to."""

    def give_back(self) -> int:
        """What the allocator keeps beyond its tensors, such as room for activations, goes back to
        the device. Returns the bytes.
        """
        return give_back()
