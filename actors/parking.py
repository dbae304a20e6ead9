"""Moves a copy's tensors to host memory and back, so that copies can take turns on a device.

It works on storages, not on tensors: a storage is emptied and later filled again in place, so that
every view of it (DeepSpeed's flat buffers and the parameters inside them) stays what it was. The
memory is given back to the device, since who comes next may be another process.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, UntypedStorage

from actors.giving_back import give_back


class Parking:
    """The storages of one copy while they are away from the device."""

    def __init__(self) -> None:
        self._away: list[tuple[UntypedStorage, Tensor]] = []

    @property
    def parked(self) -> bool:
        """Whether the copy is in host memory."""
        return bool(self._away)

    @property
    def num_bytes(self) -> int:
        """Bytes in host memory."""
        return sum(host.nbytes for _, host in self._away)

    def park(self, tensors: Iterable[Tensor]) -> int:
        """Move the tensors' storages to the host, each once. Returns the bytes moved, 0 if they are
        there already.
        """
        if self._away:
            return 0
        seen: set[int] = set()
        for tensor in tensors:
            storage = tensor.untyped_storage()
            # A meta tensor, of which DeepSpeed keeps some, has a size and no memory.
            if storage._cdata in seen or not storage.nbytes() or tensor.is_meta:
                continue
            seen.add(storage._cdata)
            host = torch.empty(storage.nbytes(), dtype=torch.uint8)
            host.untyped_storage().copy_(storage)
            storage.resize_(0)
            self._away.append((storage, host))
        give_back()
        return self.num_bytes

    def wake(self) -> int:
        """Move everything back. Returns the bytes moved."""
        moved = self.num_bytes
        for storage, host in self._away:
            storage.resize_(host.nbytes)
            storage.copy_(host.untyped_storage())
        self._away.clear()
        return moved
