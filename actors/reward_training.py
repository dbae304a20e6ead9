"""Minibatches of a preference file with reasons, for the critique-based reward model."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from actors.reward import evaluator_turns
from trainers.batch import Batch, Row, collate, encode_row
from trainers.data.preferences import ReasonedPair
from trainers.data.processing import Processing
from trainers.data.records import Turn


@dataclass(frozen=True, slots=True)
class ReasonedPairs:
    """Pairs shuffled anew each epoch, endless; two rows a pair, chosen then rejected.

    A pair that lacks a reason on either side is trained without both (MM-RLHF's `no_critic`): a
    critique on one side alone would tell the sides apart.
    """

    pairs: Sequence[ReasonedPair]
    request: str
    batch_size: int
    micro_batch_size: int
    """Rows a forward; a pair is never split."""
    seed: int
    facts: bool = False
    """What is known of the image stands in the prompt."""

    def __call__(self, processing: Processing, rank: int, world: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches, an optimiser step each time; equally many on every rank."""
        order = self._order()
        step = max(1, self.micro_batch_size // 2)
        while True:
            pairs = [self.pairs[next(order)] for _ in range(self.batch_size)][rank::world]
            yield [self._batch(pairs[i : i + step], processing) for i in range(0, len(pairs), step)]

    def _order(self) -> Iterator[int]:
        rng = random.Random(self.seed)
        while True:
            yield from rng.sample(range(len(self.pairs)), len(self.pairs))

    def _batch(self, pairs: Sequence[ReasonedPair], processing: Processing) -> Batch:
        rows = [row for pair in pairs for row in pair_rows(pair, self.request, facts=self.facts)]
        return collate(rows, [encode_row(row, processing) for row in rows], processing)


def pair_rows(
    pair: ReasonedPair, request: str, *, given: bool = True, facts: bool = False
) -> list[Row]:
    """The evaluator's prompt on each side, with the reasons as critiques if there are both.

    Without `given` the reasons are left out all the same.
    """
    given = given and pair.has_reasons
    sides = ((pair.chosen, pair.chosen_reason), (pair.rejected, pair.rejected_reason))
    return [
        Row(
            id=pair.sample.id,
            prompt=evaluator_turns(request, pair.sample, text, facts=facts),
            images=pair.sample.images,
            response_ids=None if given else (),
            turns=(Turn(role="assistant", text=reason or ""),) if given else (),
            scalars={"tie": float(pair.is_tie)},
        )
        for text, reason in sides
    ]
