"""Which process of which role works on which GPU of which node: a pure function, no Ray.

Two settings say it: how many GPUs a role has (`placement.gpus`), and which roles share theirs
(`placement.colocate`). Roles that share a GPU are a *group*; groups have GPUs of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from cluster.placement_text import explain
from trainers.data.errors import UserError

PlacedRole = Literal["policy", "critic", "reference", "rollout", "judge", "writer"]
ROLES: tuple[PlacedRole, ...] = get_args(PlacedRole)
LOAD: dict[PlacedRole, int] = {
    "policy": 8,
    "critic": 8,
    "rollout": 4,
    "judge": 3,
    "reference": 1,
    "writer": 1,
}
"""How full a role makes its GPU, roughly: a trained copy holds gradients and optimiser states, an
engine a KV cache. Only used to choose which roles share a GPU when there are too few."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster.

    Example: `Node("gpu-7", gpus=8, id="3f2a...", free=6)`
    """

    name: str
    gpus: int
    id: str = ""
    """Ray's; names need not differ."""
    free: int | None = None
    """GPUs that nobody holds now; None: all of them."""


@dataclass(frozen=True, slots=True)
class Request:
    """The processes of one role."""

    role: PlacedRole
    num_processes: int = 1
    gpus_each: int = 1
    """Above 1 a tensor-parallel engine, whose GPUs are on one node; 0: works without a GPU."""

    @property
    def num_gpus(self) -> int:
        """GPUs of the role, all processes together."""
        return self.num_processes * self.gpus_each


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one process works."""

    role: PlacedRole
    rank: int
    node: int
    """Index in `Plan.nodes`."""
    gpus: tuple[int, ...]
    """Of the run's share of the node, from 0; empty without a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The map role -> rank -> node -> GPU.

    Example: `Plan(nodes=(Node("a", 1),), seats=(Seat("policy", 0, 0, (0,)),),
    groups=(("policy",),))`
    """

    nodes: tuple[Node, ...]
    seats: tuple[Seat, ...]
    groups: tuple[tuple[PlacedRole, ...], ...]
    """Roles that share GPUs."""
    folded: bool = False
    """Whether roles were put together because there are too few GPUs for one each."""
    on_gpu: bool = True
    _by_process: dict[tuple[str, int], Seat] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_process = {(seat.role, seat.rank): seat for seat in self.seats}
        object.__setattr__(self, "_by_process", by_process)

    def seat(self, role: str, rank: int = 0) -> Seat | None:
        """Where a process works; None for one that was not asked for."""
        return self._by_process.get((role, rank))

    def num_ranks(self, role: str) -> int:
        """Processes of a role; a copy that was not asked for is in those of the policy."""
        number = sum(seat.role == role for seat in self.seats)
        return number or sum(seat.role == "policy" for seat in self.seats) or 1

    def shares(self, role: str) -> bool:
        """Whether a process of another role may work on a device of this one. Without GPUs there is
        one device, which all roles share; so does a role that was not asked for.
        """
        if not self.on_gpu:
            return True
        own = {(seat.node, gpu) for seat in self.seats if seat.role == role for gpu in seat.gpus}
        taken = {(seat.node, gpu) for seat in self.seats if seat.role != role for gpu in seat.gpus}
        return bool(own & taken) or not any(seat.role == role for seat in self.seats)

    def gpus_by_node(self) -> dict[int, int]:
        """Index of every node with a seat -> GPUs to reserve there."""
        used: dict[int, int] = {}
        for seat in self.seats:
            used[seat.node] = max(used.get(seat.node, 0), *(gpu + 1 for gpu in seat.gpus), 0)
        return used

    @property
    def num_gpus(self) -> int:
        """GPUs that the run holds."""
        return sum(self.gpus_by_node().values())


def plan(
    requests: Sequence[Request],
    nodes: Sequence[Node],
    colocate: Sequence[Sequence[PlacedRole]] | None = None,
) -> Plan:
    """Seats for all processes.

    Roles named together in `colocate` share GPUs, all others have their own. Without `colocate`
    every role has its own as long as there are enough; else the two lightest groups are put
    together, again and again, until it fits. Limiting cases: one GPU and one process a role, and
    all share it; as many GPUs as asked for, and none is shared.

    Within a group the widest role takes all GPUs, the others the least loaded ones. Two processes
    of one role are never on the same GPU (NCCL refuses that).

    Raises:
        UserError: it cannot fit; says what was asked, what is there, and the key to change.
    """
    if not any(node.gpus for node in nodes):
        return _without_gpus(requests, nodes)
    by_role = {request.role: request for request in requests}
    groups = _groups(by_role, colocate)
    folded = False
    while not _fits(groups, by_role, nodes):
        wide = [group for group in groups if _width(group, by_role)]
        if colocate is not None or len(wide) < 2:
            raise UserError(explain(requests, nodes, colocate))
        # A stable sort: of equally light groups those that were named first.
        light = sorted(wide, key=lambda group: sum(LOAD[role] for role in group))[:2]
        merged = _ordered(by_role, [*light[0], *light[1]])
        groups = [merged, *(group for group in groups if group not in light)]
        folded = True
    groups.sort(key=lambda group: ROLES.index(group[0]))
    return Plan(
        nodes=tuple(nodes),
        seats=tuple(_seats(groups, by_role, nodes)),
        groups=tuple(groups),
        folded=folded,
    )


def _without_gpus(requests: Sequence[Request], nodes: Sequence[Node]) -> Plan:
    seats = [
        Seat(request.role, rank, 0, ())
        for request in requests
        for rank in range(request.num_processes)
    ]
    group = tuple(request.role for request in requests)
    return Plan(nodes=tuple(nodes[:1]), seats=tuple(seats), groups=(group,), on_gpu=False)


def _ordered(by_role: dict[PlacedRole, Request], roles: Iterable[str]) -> tuple[PlacedRole, ...]:
    wanted = set(roles)
    return tuple(role for role in by_role if role in wanted)


def _groups(
    by_role: dict[PlacedRole, Request], colocate: Sequence[Sequence[PlacedRole]] | None
) -> list[tuple[PlacedRole, ...]]:
    """The groups that are asked for; a role of `colocate` that this run lacks is left out."""
    named = [_ordered(by_role, group) for group in colocate or ()]
    together = {role for group in named for role in group}
    return [*(group for group in named if group), *((r,) for r in by_role if r not in together)]


def _width(group: Sequence[PlacedRole], by_role: dict[PlacedRole, Request]) -> int:
    return max(by_role[role].num_gpus for role in group)


def _pieces(group: Sequence[PlacedRole], by_role: dict[PlacedRole, Request]) -> list[int]:
    """GPUs of a group in pieces that are on one node each: those of tensor-parallel engines first,
    which only one role has, then single ones.
    """
    engines = [by_role[role] for role in group if by_role[role].gpus_each > 1]
    pieces = [request.gpus_each for request in engines for _ in range(request.num_processes)]
    return pieces + [1] * (_width(group, by_role) - sum(pieces))


def _fits(
    groups: Sequence[tuple[PlacedRole, ...]],
    by_role: dict[PlacedRole, Request],
    nodes: Sequence[Node],
) -> bool:
    pieces = [piece for group in groups for piece in _pieces(group, by_role)]
    largest = max(pieces, default=0)
    room = sum(node.gpus // largest for node in nodes) if largest else 0
    # Sizes are 1 and one other, so that with room for the large ones only the sum counts.
    large = sum(piece == largest for piece in pieces)
    return sum(pieces) <= sum(node.gpus for node in nodes) and large <= room


def _seats(
    groups: Sequence[tuple[PlacedRole, ...]],
    by_role: dict[PlacedRole, Request],
    nodes: Sequence[Node],
) -> list[Seat]:
    free = [node.gpus for node in nodes]
    taken = [0] * len(nodes)
    # Large pieces first: single ones could leave no node with room for them.
    order = sorted(groups, key=lambda g: (-max(_pieces(g, by_role), default=0), ROLES.index(g[0])))
    seats: list[Seat] = []
    for group in order:
        pieces = []
        index: int | None = None
        rest = _width(group, by_role)
        for size in _pieces(group, by_role):
            if index is None or free[index] < size:  # a node that was begun is gone on with
                index = _choose(free, size, rest)
            pieces.append([(index, taken[index] + gpu) for gpu in range(size)])
            free[index] -= size
            taken[index] += size
            rest -= size
        seats += _in_group(group, by_role, pieces)
    return sorted(seats, key=lambda seat: (ROLES.index(seat.role), seat.rank))


def _choose(free: Sequence[int], size: int, rest: int) -> int:
    """The node for a piece: the one that the rest of the group fills best, or else the emptiest."""
    enough = [index for index, gpus in enumerate(free) if gpus >= rest]
    if enough:
        return min(enough, key=lambda index: (free[index], index))
    return max(
        (index for index, gpus in enumerate(free) if gpus >= size),
        key=lambda index: (free[index], -index),
    )


def _in_group(
    group: Sequence[PlacedRole],
    by_role: dict[PlacedRole, Request],
    pieces: Sequence[Sequence[tuple[int, int]]],
) -> list[Seat]:
    place = {slot: number for number, slot in enumerate(s for piece in pieces for s in piece)}
    load = dict.fromkeys(place, 0)
    seats = []
    for request in sorted((by_role[role] for role in group), key=lambda r: -r.num_gpus):
        chosen: list[Sequence[tuple[int, int]]]
        if request.gpus_each == 0:
            chosen = [[] for _ in range(request.num_processes)]
        elif request.gpus_each > 1:
            chosen = list(pieces[: request.num_processes])
        else:
            least = sorted(place, key=lambda slot: (load[slot], place[slot]))
            chosen = [[s] for s in sorted(least[: request.num_processes], key=place.__getitem__)]
        for rank, own in enumerate(chosen):
            node = own[0][0] if own else 0
            seats.append(Seat(request.role, rank, node, tuple(gpu for _, gpu in own)))
            for slot in own:
                load[slot] += LOAD[request.role]
    return seats
