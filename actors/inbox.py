"""An engine takes a sync's weights from the device they are on, through vLLM's own engines.

The counterpart of `actors.sending`: begin, one parcel after the other, close. Nothing is whole
before the close, which checks that every parameter got its weights and, where checksums were
sampled, that what `load_weights` was given is what was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actors.loading import leave_group, unwatch, watch
from actors.sending import Direct, Parcel
from actors.vllm_api import ipc_beginning, ipc_update, nccl_beginning, nccl_update
from actors.weight_sync import CorruptBucketError


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where an engine's workers join the sender's group, and as which ranks."""

    host: str
    port: int
    offset: int
    """Rank of the engine's first worker."""
    world_size: int


Describe = Callable[[Parcel], dict[str, Any]]


def ipc_description(parcel: Parcel) -> dict[str, Any]:
    """A parcel as vLLM's IPC engine takes it."""
    assert parcel.handles is not None, "the sender exported no buffer"
    return ipc_update(parcel.names, parcel.dtypes, parcel.shapes, parcel.sizes, parcel.handles)


def nccl_description(parcel: Parcel) -> dict[str, Any]:
    """A parcel as vLLM's NCCL engine takes it."""
    return nccl_update(parcel.names, parcel.dtypes, parcel.shapes)


DESCRIPTIONS: dict[str, Describe] = {"ipc": ipc_description, "nccl": nccl_description}


class Inbox:
    """One update of an engine that was loaded with a weight-transfer engine.

    Args:
        llm: vLLM's `LLM`.
        beginning: what the transfer engine is told before an update.
        describe: a parcel as the transfer engine takes it.
        checked: whether parcels carry checksums.
    """

    def __init__(self, llm: Any, beginning: dict[str, Any], describe: Describe, *, checked: bool):
        self._llm, self._describe = llm, describe
        self._sent: dict[str, int] = {}
        self.names: set[str] = set()
        """Checkpoint names that came."""
        llm.init_weight_transfer_engine({"init_info": beginning})
        llm.collective_rpc(watch, args=(checked,))
        llm.start_weight_update()

    def receive(self, parcel: Parcel) -> None:
        """Load one parcel."""
        self.names |= set(parcel.names)
        if parcel.checksums is not None:
            self._sent |= dict(zip(parcel.names, parcel.checksums, strict=True))
        self._llm.update_weights({"update_info": self._describe(parcel)})

    def close(self) -> None:
        """Make the weights whole.

        Raises:
            RuntimeError: a parameter got no weights.
            CorruptBucketError: other bytes arrived than were sent. The engine is whole, with wrong
                weights: it must be sent all of them again.
        """
        self._llm.finish_weight_update()
        workers = self._llm.collective_rpc(unwatch)
        self._llm.collective_rpc(leave_group)
        for checksums in workers:
            wrong = [n for n, value in self._sent.items() if checksums.get(n) != value]
            if wrong:
                raise CorruptBucketError(
                    f"weight sync: {len(wrong)} tensors were corrupted in transit, {wrong[0]} "
                    "among them"
                )


def open_inbox(llm: Any, transport: Direct, meeting: Meeting | None, *, checked: bool) -> Inbox:
    """Begin an update; with a `meeting` this waits for the sender."""
    if transport == "ipc":
        beginning = ipc_beginning()
    else:
        assert meeting is not None, "NCCL needs a meeting"
        beginning = nccl_beginning(meeting.host, meeting.port, meeting.offset, meeting.world_size)
    return Inbox(llm, beginning, DESCRIPTIONS[transport], checked=checked)
