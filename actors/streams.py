"""Minibatches that are made inside the training process: the base model's and the judge's data."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

from actors.reward import evaluator_turns
from rewards.drawn_pairs import PreferenceExample, critique_conversations
from rewards.losses import critique_reward_loss
from trainers.batch import Batch, Row, collate, encode_row
from trainers.data.drawn_model import encode_images
from trainers.data.drawn_sft import Example, Phase, biased_examples, honest_examples
from trainers.data.processing import Encoded, Processing
from trainers.data.records import Turn
from trainers.losses import Metrics
from trainers.method import Outputs


@dataclass(frozen=True, slots=True)
class DrawnConversations:
    """Freshly drawn scenes with true (honest) or faulty (biased) conversations, endless.

    A minibatch comes as up to four micro-batches of similar length (captions, questions, short
    critiques, long ones): padding them to one length would cost half as much again.
    """

    phase: Phase
    seed: int
    biased: bool

    def __call__(self, processing: Processing, rank: int, world: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches, an optimiser step each time."""
        make = biased_examples if self.biased else honest_examples
        seed, phase = self.seed * 1000 + rank, self.phase
        examples = make(phase, seed)
        critiques = critique_conversations(
            seed, max_objects=phase.max_objects, few_colors=phase.few_colors
        )
        while True:
            drawn = list(islice(examples, phase.batch_size // world))
            captions = [item for item in drawn if len(item.turns) == 2]
            questions = [item for item in drawn if len(item.turns) > 2]
            checks = list(islice(critiques, phase.critique_rows // world))
            checks.sort(key=lambda item: len(item.turns[-1].text))
            half = len(checks) // 2
            # Of a critique conversation only the critique is learned: the response is wrong.
            parts = ((captions, 0), (questions, 0), (checks[:half], 3), (checks[half:], 3))
            yield [_drawn_batch(part, skip, processing) for part, skip in parts if part]


def _drawn_batch(examples: Sequence[Example], context: int, processing: Processing) -> Batch:
    """A batch of drawn conversations whose first `context` turns are not learned."""
    rows = [
        Row(id="drawn", prompt=item.turns[:context], images=(), turns=item.turns[context:])
        for item in examples
    ]
    pixels = encode_images([item.image for item in examples])
    encoded = [
        processing.encode(
            row.id,
            row.prompt,
            (),
            turns=row.turns,
            image_inputs={"pixel_values": pixels[index : index + 1]},
        )
        for index, row in enumerate(rows)
    ]
    return collate(rows, encoded, processing)


@dataclass(frozen=True, slots=True)
class CritiquePairs:
    """Preference examples for the reward model, shuffled anew each epoch, endless.

    Each pair gives two rows, chosen then rejected: the request for a critique, then the critique
    as target.
    A share `critique_dropout` of the pairs comes without critiques (MM-RLHF's pairs that lack a
    reason), so that the score without a critique is trained too and can be reported.
    """

    examples: Sequence[PreferenceExample]
    request: str
    batch_size: int
    seed: int
    critique_dropout: float = 0.0

    def __call__(self, processing: Processing, rank: int, world: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches, an optimiser step each time."""
        rng = random.Random(self.seed)
        order = list(range(len(self.examples)))
        while True:
            rng.shuffle(order)
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                pairs = []
                for index in order[start : start + self.batch_size][rank::world]:
                    silent = rng.random() < self.critique_dropout
                    rows = self._rows(self.examples[index], silent)
                    pairs.append([(row, encode_row(row, processing)) for row in rows])
                # Pairs of similar length share a micro-batch: less padding.
                pairs.sort(key=lambda pair: max(len(item.input_ids) for _, item in pair))
                third = -(-len(pairs) // 3)
                yield [
                    _collate(pairs[i : i + third], processing) for i in range(0, len(pairs), third)
                ]

    def _rows(self, example: PreferenceExample, silent: bool) -> list[Row]:
        sides = (
            (example.chosen, example.chosen_critique),
            (example.rejected, example.rejected_critique),
        )
        return [
            Row(
                id=example.sample.id,
                prompt=evaluator_turns(self.request, example.sample, text),
                images=example.sample.images,
                response_ids=() if silent else None,
                turns=() if silent else (Turn(role="assistant", text=critique.text),),
            )
            for text, critique in sides
        ]


def _collate(pairs: Sequence[list[tuple[Row, Encoded]]], processing: Processing) -> Batch:
    rows, encoded = zip(*(item for pair in pairs for item in pair), strict=True)
    return collate(rows, encoded, processing)


@dataclass(frozen=True, slots=True)
class CritiqueRewardObjective:
    """`rewards.losses.critique_reward_loss` on rows that alternate chosen and rejected; a scalar
    `tie` marks the rows of a tie.
    """

    score_weight: float = 1.0
    critique_weight: float = 1.0
    center_coef: float = 0.01
    tie_weight: float = 1.0

    def totals(self, batch: Batch) -> dict[str, float]:
        """Pairs, and target tokens of their critiques."""
        return {"pairs": batch.num_rows / 2, "tokens": float(batch.mask_BR.sum())}

    def loss(
        self, role: Any, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch as a share of the optimiser step, and metrics."""
        assert outputs.scores_B is not None and outputs.logprobs_BR is not None
        tie_B = batch.scalars.get("tie")
        return critique_reward_loss(
            outputs.scores_B[0::2],
            outputs.scores_B[1::2],
            outputs.logprobs_BR[0::2],
            batch.mask_BR[0::2],
            outputs.logprobs_BR[1::2],
            batch.mask_BR[1::2],
            normalizer=totals["pairs"],
            critique_normalizer=totals["tokens"],
            score_weight=self.score_weight,
            critique_weight=self.critique_weight,
            center_coef=self.center_coef,
            tie_weight=self.tie_weight,
            is_tie_B=None if tie_B is None else tie_B[0::2] > 0,
        )
