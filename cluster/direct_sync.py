"""The policy's weights to the rollout engines without the object store: device to device.

Not run so far: it needs GPUs. The engines' half was run on a CPU with a transfer engine of the
test's own (`tests/actors/test_inbox.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from actors.inbox import Meeting
from actors.sending import Parcel
from actors.weight_sync import CorruptBucketError
from cluster.arm import Arm
from cluster.process import Process
from cluster.residency import at_work, awake
from cluster.session import Session
from cluster.transport import senders
from cluster.wait import ProcessLostError


def send_directly(session: Session, arm: Arm, version: int) -> bool:
    """Send all weights as `version`. False if they did not arrive whole: they have to be sent
    another way, to engines that know nothing.
    """
    with awake(session, arm, "rollout"), at_work(session, arm, "policy"):
        try:
            _Transfer(session, arm).run(version)
        except CorruptBucketError as error:
            session.console.warn(f"{error}; all are sent again through the object store")
            return False
        except ProcessLostError as error:
            if error.process.role != "rollout":
                raise
            session.console.warn(f"{error}; new engines get the weights through the object store")
            for process in session.served("rollout").processes:
                if not process.lost:  # half an update cannot be undone
                    process.kill()
            return False
    return True


class _Transfer:
    """One sync."""

    def __init__(self, session: Session, arm: Arm):
        assert session.transport is not None, "load the engines first"
        assert session.transport.transport != "object_store"
        self._wait, self._kind = session.wait, session.transport.transport
        self._policy = session.trainer("policy")
        self._engines: list[Process] = session.served("rollout").processes
        self._senders = (0,) if self._kind == "nccl" else senders(session.plan)
        self._workers = arm.config.rollout.tensor_parallel
        self._bucket_bytes = arm.config.train.bucket_mib * 2**20
        self._checked = arm.round % arm.config.train.checksum_every == 0

    def run(self, version: int) -> None:
        """Begin on both sides, bucket after bucket, close on both."""
        addresses = self._policy.ask(
            "open_outbox",
            self._kind,
            self._bucket_bytes,
            self._senders,
            checked=self._checked,
            limit="sync",
        )
        self._begin(addresses[0])
        while parcel := self._next():
            self._together("broadcast" if self._kind == "nccl" else None, "receive", parcel)
        self._together(None, "close_update", version)
        self._policy.ask("outbox", "close", limit="sync")

    def _begin(self, address: tuple[str, int] | None) -> None:
        world = 1 + self._workers * len(self._engines)
        asked = []
        for number, engine in enumerate(self._engines):
            meeting = None
            if address is not None:
                meeting = Meeting(*address, offset=1 + number * self._workers, world_size=world)
            asked.append(engine.send("open_update", meeting, checked=self._checked))
        if address is not None:
            asked += self._policy.send("outbox", "meet", world)
        self._wait(asked, "sync")

    def _next(self) -> Parcel | None:
        """The next bucket, with the handles of all ranks that send."""
        found = self._policy.ask("outbox", "next_parcel", limit="sync")
        parcels = [found[rank] for rank in self._senders]
        if parcels[0] is None:
            return None
        handles: dict[str, Any] = {}
        for parcel in parcels:
            handles |= parcel.handles or {}
        merged: Parcel = replace(parcels[0], handles=handles or None)
        return merged

    def _together(self, sender: str | None, receiver: str, *args: Any) -> None:
        """Engines, and with NCCL the sender, at the same time."""
        asked = [engine.send(receiver, *args) for engine in self._engines]
        if sender is not None:
            asked += self._policy.send("outbox", sender)
        self._wait(asked, "sync")
