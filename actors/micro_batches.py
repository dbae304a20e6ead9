"""A rank's share of an optimiser step's groups, as micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainers.batch import Batch, Group, Row, collate
from trainers.data.processing import Processing


def micro_batches(
    groups: Sequence[Group],
    encoded: Mapping[int, Any],
    processing: Processing,
    *,
    rank: int,
    world_size: int,
    size: int,
) -> Iterator[tuple[Batch, float]]:
    """The rank's micro-batches of at most `size` rows with weight 1, then weight-0 ones until all
    ranks have as many (collectives hang if one rank runs fewer forwards).
    """
    shares = [_pack(groups[r::world_size], size) for r in range(world_size)]
    number = max(len(share) for share in shares)
    own = [(rows, 1.0) for rows in shares[rank]]
    filler = list(groups[0])
    own += [(filler, 0.0)] * (number - len(own))
    for rows, weight in own:
        yield collate(rows, [encoded[id(row)] for row in rows], processing), weight


def _pack(groups: Sequence[Group], size: int) -> list[list[Row]]:
    packed: list[list[Row]] = []
    for group in groups:
        if not packed or len(packed[-1]) + len(group) > size:
            packed.append([])
        packed[-1].extend(group)
    return packed
