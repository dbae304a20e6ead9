"""The policy's weights to the rollout engines without the object store: device to device."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from ray.exceptions import RayTaskError

from actors.inbox import Meeting
from actors.sending import Parcel
from actors.transports import WORDS, Choice
from actors.weight_sync import CorruptBucketError
from cluster.arm import Arm
from cluster.failures import one_line
from cluster.process import Process
from cluster.recipe import Call
from cluster.residency import at_work, awake
from cluster.session import Session
from cluster.transport import senders
from cluster.wait import DeadlineError, ProcessLostError

FAILURES = (RayTaskError, CorruptBucketError, ProcessLostError, DeadlineError)
"""What a transfer may end with."""


def send_directly(session: Session, arm: Arm, version: int) -> bool:
    """Send all weights as `version`. False if they did not arrive whole: they have to be sent
    another way, to engines that know nothing.

    Corrupted weights, and an engine that dies, cost one sync. If `auto` chose the transport, any
    other failure ends direct syncs for the session, and so do these before a first one has worked.

    Raises:
        RayTaskError, DeadlineError: what failed, if the transport was asked for by its name.
        ProcessLostError: a rank of the policy died.
    """
    with awake(session, arm, "rollout"), at_work(session, arm, "policy"):
        transfer = _Transfer(session, arm)
        try:
            transfer.run(version)
        except FAILURES as error:
            _recover(session, error)
            if transfer.policy.lost:
                session.console.warn(
                    "the policy's sender was in a broadcast to an engine that does not come, which "
                    "nothing but its end could end: its copy has to be made anew"
                )
            return False
    session.direct_worked = True
    return True


def _recover(session: Session, error: Exception) -> None:
    """Say what happens now, and end engines that may hold half an update; or raise."""
    choice = session.transport
    assert choice is not None, "load the engines first"
    lost = error.process.role if isinstance(error, ProcessLostError) else None
    passing = lost is not None or isinstance(error, CorruptBucketError)
    if choice.falls_back and not (passing and session.direct_worked):
        _give_up(session, choice, error)
    elif not passing:
        raise error
    elif lost is None:  # the engines are whole, if wrong
        session.console.warn(f"{one_line(error)}; all are sent again through the object store")
        return
    elif lost == "rollout":
        session.console.warn(f"{error}; new engines get the weights through the object store")
    for process in session.served("rollout").processes:
        if not process.lost:  # half an update cannot be undone
            process.kill()
    if lost not in (None, "rollout"):
        raise error


def _give_up(session: Session, choice: Choice, error: Exception) -> None:
    """The object store from now on; an engine that is made anew is made for it."""
    why = f"{choice.transport} failed: {one_line(error)}"
    session.not_direct, session.transport = why, Choice("object_store", why)
    recipe = session.served("rollout").recipe
    assert recipe.load is not None, "engines that were sent to were loaded"
    load = recipe.load()
    spec = replace(load.args[0], transport="object_store")
    recipe.load = lambda: Call(load.name, (spec,))
    session.console.warn(
        f"weights {WORDS[choice.transport]}: {one_line(error)}; train.transport=auto goes on "
        "through host memory, with new engines, for the rest of the run"
    )


class _Transfer:
    """One sync."""

    def __init__(self, session: Session, arm: Arm):
        assert session.transport is not None, "load the engines first"
        assert session.transport.transport != "object_store"
        self._wait, self._kind = session.wait, session.transport.transport
        self.policy = session.trainer("policy")
        self._engines: list[Process] = session.served("rollout").processes
        self._senders = (0,) if self._kind == "nccl" else senders(session.plan)
        self._workers = arm.config.rollout.tensor_parallel
        self._bucket_bytes = arm.config.train.bucket_mib * 2**20
        self._checked = arm.round % arm.config.train.checksum_every == 0

    def run(self, version: int) -> None:
        """Begin on both sides, bucket after bucket, close on both. The sender closes whatever
        happens: it would keep its buffer, or its group, for ever.
        """
        try:
            self._send(version)
        except Exception:
            if not self.policy.lost:
                with suppress(RayTaskError):  # of two errors the first one is the cause
                    self._close()
            raise
        self._close()

    def _close(self) -> None:
        self.policy.ask("outbox", "close", limit="sync")

    def _send(self, version: int) -> None:
        addresses = self.policy.ask(
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

    def _begin(self, address: tuple[str, int] | None) -> None:
        world = 1 + self._workers * len(self._engines)
        asked = []
        for number, engine in enumerate(self._engines):
            meeting = None
            if address is not None:
                meeting = Meeting(*address, offset=1 + number * self._workers, world_size=world)
            asked.append(engine.send("open_update", meeting, checked=self._checked))
        if address is not None:
            asked += self.policy.send("outbox", "meet", world)
        self._wait(asked, "sync")

    def _next(self) -> Parcel | None:
        """The next bucket, with the handles of all ranks that send."""
        found = self.policy.ask("outbox", "next_parcel", limit="sync")
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
            asked += self.policy.send("outbox", sender)
        self._wait(asked, "sync")
