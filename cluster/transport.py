"""Which way the policy's weights go to the rollout engines of a session."""

from __future__ import annotations

from collections.abc import Callable

from actors.engine import EngineSpec
from actors.transports import Choice, Gpu, Reach, choose
from cluster.placement import Plan


def choose_transport(
    spec: EngineSpec, plan: Plan, look: Callable[[], Reach], *, not_direct: str = ""
) -> Choice:
    """The transport for engines of `spec`.

    Args:
        look: asks one of them what it finds, if it matters.
        not_direct: why `auto` is to take the object store.

    Raises:
        UserError: `train.transport` names one that cannot work here.
    """
    if not any(s.role == "policy" for s in plan.seats):
        return Choice("object_store", "")  # nothing is trained
    if spec.transport == "object_store":
        return Choice("object_store", spec.transport_why)
    if spec.transport == "auto" and not_direct:
        return Choice("object_store", not_direct)
    return choose(
        spec.transport,
        look(),
        policy=gpus_of(plan, "policy"),
        rollout=gpus_of(plan, "rollout"),
        takes_turns=spec.takes_turns,
    )


def gpus_of(plan: Plan, role: str) -> frozenset[Gpu]:
    """Node and GPU of all processes of a role."""
    return frozenset((s.node, gpu) for s in plan.seats if s.role == role for gpu in s.gpus)


def senders(plan: Plan) -> tuple[int, ...]:
    """The policy's ranks that share a GPU with an engine: each GPU's buffer is opened there."""
    engines = gpus_of(plan, "rollout")
    seats = [seat for seat in plan.seats if seat.role == "policy"]
    return tuple(s.rank for s in seats if {(s.node, gpu) for gpu in s.gpus} & engines)
