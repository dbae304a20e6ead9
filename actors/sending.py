"""The policy's weights leave its process without the object store: bucket by bucket, by handle
or by broadcast, for vLLM's own weight-transfer engines (`actors.transports`).

One bucket after the other is on its way, so that what a transfer needs beside the weights is one
bucket, merged adapters included. Weights that ZeRO-3 has in parts do not go this way: to be renamed
they have to be whole, all of them, in host memory.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from actors.address import own_address
from actors.progress import note
from actors.segments import ordinary_segments
from actors.vllm_api import nccl_sender
from actors.weight_sync import checkpoint_tensors, tensor_checksum

Direct = Literal["ipc", "nccl"]


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a bucket holds; the bytes themselves stay on the device."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    """torch's names."""
    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    """Bytes."""
    checksums: tuple[int, ...] | None
    """Of each tensor; None where they were not taken: they cost a copy to the host on either
    side."""
    handles: dict[str, tuple[Any, ...]] | None = None
    """For CUDA IPC: by the GPU's UUID, what the buffer is opened with."""


class Outbox:
    """The weights of one sync, in order.

    Args:
        tensors: names and weights, wherever they are.
        device: what they are sent from.
    """

    def __init__(
        self,
        tensors: Iterator[tuple[str, Tensor]],
        device: torch.device,
        bucket_bytes: int,
        *,
        checked: bool,
    ):
        self._tensors, self._device = tensors, device
        self._bucket_bytes, self._checked = bucket_bytes, checked
        self._next: tuple[str, Tensor] | None = None
        self.address: tuple[str, int] | None = None
        """Where engines meet this process, if they have to."""
        self.current: list[tuple[str, Tensor]] = []
        """The bucket that is on its way."""

    def next_parcel(self) -> Parcel | None:
        """Put the next bucket together; None when there is none."""
        self.current = list(self._take())
        if not self.current:
            return None
        names, tensors = zip(*self.current, strict=True)
        note(f"outbox: put together up to {names[-1]}")
        return Parcel(
            names=names,
            dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for tensor in tensors),
            shapes=tuple(tuple(tensor.shape) for tensor in tensors),
            sizes=tuple(tensor.nbytes for tensor in tensors),
            checksums=tuple(map(tensor_checksum, tensors)) if self._checked else None,
            handles=self._handles(),
        )

    def _take(self) -> Iterator[tuple[str, Tensor]]:
        size = 0
        while True:
            item = self._next or next(self._tensors, None)
            self._next = None
            if item is None:
                return
            name, tensor = item
            if size and size + tensor.nbytes > self._bucket_bytes:
                self._next = item
                return
            size += tensor.nbytes
            yield name, tensor.to(self._device).contiguous()

    def _handles(self) -> dict[str, tuple[Any, ...]] | None:
        return None

    def close(self) -> None:
        """Nothing is on its way any more, and nothing is to come."""
        self.current, self._tensors, self._next = [], iter(()), None


class IpcOutbox(Outbox):
    """Through one buffer on the GPU, which engines there open and copy from."""

    _buffer: Tensor | None = None
    _exported: tuple[Any, ...] = ()

    def _handles(self) -> dict[str, tuple[Any, ...]]:
        from torch.multiprocessing.reductions import reduce_tensor

        size = sum(tensor.nbytes for _, tensor in self.current)
        if self._buffer is None or size > self._buffer.nbytes:
            with ordinary_segments():
                largest = max(size, self._bucket_bytes)
                self._buffer = torch.empty(largest, dtype=torch.uint8, device=self._device)
            # Once for a buffer: an engine opens it once and keeps it open.
            self._exported = reduce_tensor(self._buffer)[1]
        start = 0
        for _, tensor in self.current:
            self._buffer[start : start + tensor.nbytes].copy_(tensor.view(-1).view(torch.uint8))
            start += tensor.nbytes
        self.current = []
        # What is read next to it is another process's stream, which knows nothing of this one's.
        torch.cuda.current_stream(self._device).synchronize()
        uuid = str(torch.cuda.get_device_properties(self._device).uuid)
        return {uuid: self._exported}

    def close(self) -> None:
        """The buffer goes, too."""
        super().close()
        self._buffer, self._exported = None, ()
        torch.cuda.ipc_collect()


class NcclOutbox(Outbox):
    """To engines on other GPUs, as rank 0 of a group that lives for one sync: an engine that was
    replaced in between is met like any other.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._held = _held_port()
        self.address = own_address(), int(self._held.getsockname()[1])
        self._group: Any = None

    def meet(self, world_size: int) -> None:
        """Wait for the engines' workers."""
        assert self.address is not None
        with self._held:
            self._group = nccl_sender(*self.address, world_size)
        note(f"outbox: met {world_size - 1} workers")

    def broadcast(self) -> None:
        """Send the bucket; the engines receive at the same time."""
        stream = torch.cuda.current_stream(self._device)
        for _, tensor in self.current:
            self._group.broadcast(tensor, src=0, stream=stream)
        stream.synchronize()
        note("outbox: a bucket was broadcast")

    def close(self) -> None:
        """The group goes, too, and the port if nobody met here."""
        super().close()
        self._held.close()
        if hasattr(self._group, "destroy"):
            self._group.destroy()
        self._group = None


def _held_port() -> socket.socket:
    """A free port that stays ours until it is listened at.

    Nobody is given a port that is bound. But a second socket may bind it while the first does not
    listen and both allow it (SO_REUSEADDR), as that of vLLM's group does.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("", 0))
    return held


OUTBOXES: dict[str, type[Outbox]] = {"ipc": IpcOutbox, "nccl": NcclOutbox}


class Sends:
    """Of a trained copy's process: its outbox, one at a time."""

    _engine: Any
    spec: Any
    rank: int
    device: torch.device
    _outbox: Outbox | None = None
    """None on a rank that does not send."""

    def open_outbox(
        self, transport: Direct, bucket_bytes: int, senders: tuple[int, ...], *, checked: bool
    ) -> tuple[str, int] | None:
        """Begin to send from the ranks `senders`. Returns where engines meet this one, if they
        have to.
        """
        assert self.spec.zero_stage < 3, "under ZeRO-3 no rank has whole weights to send"
        self._outbox = None
        if self.rank not in senders:
            return None
        tensors = checkpoint_tensors(self._engine.module.vlm)
        self._outbox = OUTBOXES[transport](tensors, self.device, bucket_bytes, checked=checked)
        return self._outbox.address

    def outbox(self, call: str, *args: Any) -> Any:
        """Call a method of the outbox, if this rank has one."""
        return None if self._outbox is None else getattr(self._outbox, call)(*args)
