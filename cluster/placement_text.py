"""A placement in words: the map of a plan, and why there can be none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.placement import Node, PlacedRole, Plan, Request, Seat

SHOWN_NODES = 8
"""An error lists so many nodes one by one."""


def explain(
    requests: Sequence[Request],
    nodes: Sequence[Node],
    colocate: Sequence[Sequence[PlacedRole]] | None,
) -> str:
    """Why a plan cannot be: what was asked, what is there node by node, and the key to change."""
    asked = ", ".join(f"{r.role} {r.num_gpus}" for r in requests if r.num_gpus)
    parallel = next((r for r in requests if r.gpus_each > 1), None)
    if parallel is not None and all(node.gpus < parallel.gpus_each for node in nodes):
        remedy = f"rollout.tensor_parallel={parallel.gpus_each} needs so many on one node; lower it"
    elif colocate is not None:
        remedy = "put more roles together in placement.colocate, or lower placement.gpus"
    else:
        remedy = "lower placement.gpus (train.num_ranks, rollout.num_engines)"
    groups = "" if not colocate else f", colocate {[list(group) for group in colocate]}"
    return f"placement: asked for GPUs: {asked}{groups}; there are {describe(nodes)}; {remedy}"


def describe(nodes: Sequence[Node]) -> str:
    """`12 GPUs: a 8, b 4 (2 free)`."""
    shown = [
        f"{node.name} {node.gpus}"
        + ("" if node.free in (None, node.gpus) else f" ({node.free} free)")
        for node in nodes[:SHOWN_NODES]
    ]
    rest = nodes[SHOWN_NODES:]
    if rest:
        shown.append(f"{len(rest)} more nodes with {sum(node.gpus for node in rest)}")
    return f"{sum(node.gpus for node in nodes)} GPUs: {', '.join(shown)}"


def lines(plan: Plan, ids: Mapping[int, Sequence[str]] | None = None) -> list[str]:
    """One line a role: its ranks, where they are, and with whom they share. `ids` are the names of
    a node's GPUs there; without them they are counted from 0.
    """
    result = []
    width = max((len(seat.role) for seat in plan.seats), default=0)
    for role in dict.fromkeys(seat.role for seat in plan.seats):
        own = [seat for seat in plan.seats if seat.role == role]
        where: dict[int, list[Seat]] = {}
        for seat in own:
            where.setdefault(seat.node, []).append(seat)
        places = [
            f"rank {_ranges([s.rank for s in seats])} -> {plan.nodes[node].name}"
            f" {_devices(seats, (ids or {}).get(node))}"
            for node, seats in where.items()
        ]
        others = [r for group in plan.groups if role in group for r in group if r != role]
        shared = f"  (shares with {', '.join(others)})" if others and plan.on_gpu else ""
        result.append(f"{role:{width}}  {'; '.join(places)}{shared}")
    return result


def _devices(seats: Sequence[Seat], ids: Sequence[str] | None) -> str:
    gpus = [gpu for seat in seats for gpu in seat.gpus]
    if not gpus:
        return "CPU"
    if ids is not None:
        return f"GPU {','.join(ids[gpu] for gpu in gpus)}"
    return f"GPU {_ranges(gpus)}"


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3,6` for 0 1 2 3 6."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
