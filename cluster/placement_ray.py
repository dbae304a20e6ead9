"""Makes a plan real: GPUs reserved in Ray, each process told which of them are its own.

One bundle a node, pinned to it, and every process started in its node's bundle with
`CUDA_VISIBLE_DEVICES` set. Ray itself hands out shares of GPUs only one GPU at a time, which could
not seat an engine of two GPUs beside trainers of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from cluster.placement import Node, PlacedRole, Plan, Request, Seat, plan
from cluster.placement_text import describe
from trainers.data.errors import UserError

NODE_ID = "ray.io/node-id"
"""Ray's label of a node, by which a bundle is pinned to it."""
QUIET_SECONDS = 5.0
"""A wait up to so long is not worth a line."""


def cluster_nodes() -> list[Node]:
    """The cluster's living nodes, this process's own first, then by name."""
    available = available_resources_per_node()
    here = ray.get_runtime_context().get_node_id()
    alive = sorted(
        (node for node in ray.nodes() if node["Alive"]),
        key=lambda node: (node["NodeID"] != here, node["NodeName"], node["NodeID"]),
    )
    return [
        Node(
            name=node["NodeManagerHostname"],
            gpus=int(node["Resources"].get("GPU", 0)),
            id=node["NodeID"],
            free=int(available.get(node["NodeID"], {}).get("GPU", 0)),
        )
        for node in alive
    ]


@dataclass(frozen=True, slots=True)
class Reservation:
    """A plan whose GPUs are held, and how to start a process in its seat."""

    plan: Plan
    group: PlacementGroup | None = None
    bundles: dict[int, int] = field(default_factory=dict)
    """Index of a node -> of its bundle."""
    ids: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Index of a node -> the names of the GPUs that are held there."""

    def options(self, role: str, rank: int = 0) -> dict[str, Any]:
        """Ray's options for the actor of `role` and `rank`.

        A process that was not asked for joins the policy's, or whose seat is first.
        """
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 0}
        seat = self._living(
            self.plan.seat(role, rank) or self.plan.seat("policy") or self.plan.seats[0]
        )
        if self.group is None:
            if len(ray.nodes()) > 1:  # the run's files are where its driver is
                id = self.plan.nodes[seat.node].id
                options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(id, soft=False)
            return options
        options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": self._devices(seat)}}
        if seat.node in self.bundles:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                self.group, placement_group_bundle_index=self.bundles[seat.node]
            )
        return options

    def _living(self, seat: Seat) -> Seat:
        """The seat, or where its node has died the first on one that has not: there its role shares
        the GPUs.
        """
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        if self.plan.nodes[seat.node].id in alive:
            return seat
        return next((s for s in self.plan.seats if self.plan.nodes[s.node].id in alive), seat)

    def _devices(self, seat: Seat) -> str:
        return ",".join(self.ids[seat.node][gpu] for gpu in seat.gpus)

    def release(self) -> None:
        """Give the GPUs back."""
        if self.group is not None:
            remove_placement_group(self.group)


def reserve(
    requests: Sequence[Request],
    colocate: Sequence[Sequence[PlacedRole]] | None,
    *,
    wait_seconds: float,
    say: Callable[[str], None],
) -> Reservation:
    """Plan on the cluster as it is and hold the GPUs.

    What is free now is taken, if the plan fits there; else the plan is made for all GPUs, and
    `wait_seconds` are given to whoever holds them.

    Raises:
        UserError: there are too few GPUs, or they were not free in time; says what was asked, what
            is there, node by node, and which key to change.
    """
    nodes = cluster_nodes()
    found = plan(requests, nodes, colocate)
    if not found.on_gpu or not found.num_gpus:
        return Reservation(found)
    try:
        unfolded = plan(requests, [replace(n, gpus=n.free or 0) for n in nodes], colocate)
    except UserError:
        pass
    else:
        if unfolded.on_gpu and unfolded.groups == found.groups:
            found = replace(unfolded, nodes=tuple(nodes))
    held = found.gpus_by_node()
    bundles = [{"GPU": float(number)} for number in held.values()]
    labels = [{NODE_ID: nodes[index].id} for index in held]
    group = placement_group(bundles, bundle_label_selector=labels)
    _wait(group, found, nodes, wait_seconds, say)
    order = {node: bundle for bundle, node in enumerate(held)}
    return Reservation(found, group, order, _held_ids(group, held))


def _wait(
    group: PlacementGroup,
    found: Plan,
    nodes: Sequence[Node],
    wait_seconds: float,
    say: Callable[[str], None],
) -> None:
    begun = time.monotonic()
    if group.wait(min(QUIET_SECONDS, wait_seconds)):
        return
    here = describe(cluster_nodes())
    say(f"placement: {found.num_gpus} GPUs are not free yet, waiting {wait_seconds:g} s ({here})")
    if group.wait(max(0.0, wait_seconds - (time.monotonic() - begun))):
        return
    remove_placement_group(group)
    asked = ", ".join(f"{nodes[i].name} {number}" for i, number in found.gpus_by_node().items())
    raise UserError(
        f"placement: asked for {found.num_gpus} GPUs ({asked}) and did not get them in "
        f"{wait_seconds:g} s; there are {describe(cluster_nodes())}; end what holds them, raise "
        "placement.wait_seconds, or lower placement.gpus or put roles together in "
        "placement.colocate"
    )


def _held_ids(group: PlacementGroup, held: dict[int, int]) -> dict[int, tuple[str, ...]]:
    """Asks on each node which of its GPUs are the run's."""
    probe = ray.remote(num_cpus=0, max_calls=1)(_visible_ids)
    asked = [
        probe.options(
            num_gpus=number,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=bundle
            ),
        ).remote()
        for bundle, number in enumerate(held.values())
    ]
    return dict(zip(held, ray.get(asked), strict=True))


def _visible_ids() -> tuple[str, ...]:
    return tuple(str(id) for id in ray.get_gpu_ids())
