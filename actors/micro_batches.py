"""Rows laid into forwards: which of them stand together, and how many.

A forward holds a number of rows, or as many as a budget of tokens allows. The order of an optimiser
step's rows does not matter for its gradient, so that rows of like length, or of one image, can be
put beside each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.batch import Batch, Group, Row, collate
from trainers.data.processing import Processing


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwards:
    """How many rows a forward has, and how they lie in it."""

    rows: int
    """At most, where there is no budget."""
    tokens: int = 0
    """At most, padding counted; 0: the number of rows decides. A group is never split, so that one
    which is over either goes alone."""
    packing: bool = False
    """Rows lie end to end, without padding (`actors.packing`)."""
    share_images: bool = False
    """An image passes the tower once in a forward, however many rows have it."""

    def fit(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths go into one forward.

        Limiting case: without padding, or with rows of one length, tokens are the lengths' sum.
        """
        if not self.tokens:
            return len(lengths) <= self.rows
        return self.size(lengths) <= self.tokens

    def size(self, lengths: Sequence[int]) -> int:
        """Tokens of a forward of rows of these lengths: their sum, or with padding the longest as
        often as there are rows.
        """
        return sum(lengths) if self.packing else max(lengths) * len(lengths)


def micro_batches(
    groups: Sequence[Group],
    encoded: Mapping[int, Any],
    processing: Processing,
    *,
    rank: int,
    world_size: int,
    forwards: Forwards,
) -> Iterator[tuple[Batch, float]]:
    """The rank's micro-batches of an optimiser step with weight 1, then weight-0 ones until all
    ranks have as many (collectives hang if one rank runs fewer forwards).

    Args:
        encoded: of every row, by its `id()`.
    """
    lengths = {key: len(item.input_ids) for key, item in encoded.items()}
    if forwards.tokens:  # dealt by length, so that ranks have about as much to do
        groups = in_order(groups, lengths, by_length=True, share_images=False)
    shares = [
        pack(
            in_order(
                groups[r::world_size],
                lengths,
                by_length=bool(forwards.tokens),
                share_images=forwards.share_images,
            ),
            lengths,
            forwards,
        )
        for r in range(world_size)
    ]
    number = max(len(share) for share in shares)
    own = [(rows, 1.0) for rows in shares[rank]]
    filler = list(min(groups, key=lambda group: sum(lengths[id(row)] for row in group)))
    own += [(filler, 0.0)] * (number - len(own))
    for rows, weight in own:
        items = [encoded[id(row)] for row in rows]
        yield collate(rows, items, processing, share_images=forwards.share_images), weight


def in_order(
    groups: Sequence[Group], lengths: Mapping[int, int], *, by_length: bool, share_images: bool
) -> list[Group]:
    """The groups in the order in which they are laid into forwards.

    By length the longest come first: what does not fit shows at once. To share images, groups of
    the same images follow each other; where both are asked for, they come where the longest of
    them would. With neither the order stays.
    """
    longest = [max(lengths[id(row)] for row in group) if by_length else 0 for group in groups]
    places: dict[Any, tuple[int, int]] = {}
    keys = []
    for index, group in enumerate(groups):
        images = (group[0].images, group[0].noise)
        keys.append(images if share_images and group[0].images else index)
        most, first = places.get(keys[-1], (0, index))
        places[keys[-1]] = max(most, longest[index]), first

    def place(index: int) -> tuple[int, int, int]:
        most, first = places[keys[index]]
        return -most, first, -longest[index]

    return [groups[index] for index in sorted(range(len(groups)), key=place)]


def pack(
    groups: Sequence[Group], lengths: Mapping[int, int], forwards: Forwards
) -> list[list[Row]]:
    """The rows of each forward: one group after the other as long as they fit."""
    packed: list[list[Row]] = []
    for group in groups:
        rows = [*packed[-1], *group] if packed else []
        if rows and forwards.fit([lengths[id(row)] for row in rows]):
            packed[-1] = rows
        else:
            packed.append(list(group))
    return packed
