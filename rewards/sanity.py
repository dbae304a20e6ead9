"""Does a judge know good from bad? Pairs whose order is known, and how many it gets right."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rewards.base import Judge, JudgeItem, known_item
from rewards.critique import quality
from rewards.drawn_pairs import corrupt
from trainers.data.records import Sample
from trainers.data.scenes import caption, scene_from_truth

ATTEMPTS = 20
"""Draws of a bad answer before a prompt is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPair:
    """Two answers to one prompt of which the first is better beyond doubt."""

    sample: Sample
    good: str
    bad: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SanityResult:
    """How a judge ordered known pairs."""

    num_pairs: int
    right: int
    ties: int
    failures: int
    """Pairs of which it could not judge one side or both."""

    @property
    def accuracy(self) -> float:
        """(right + ties / 2) / pairs: a tie is worth a coin, a failure nothing."""
        return (self.right + 0.5 * self.ties) / self.num_pairs


def drawn_pairs(samples: Iterable[Sample], seed: int) -> list[KnownPair]:
    """For every prompt of the drawn world the truth, and the truth with errors injected."""
    rng = random.Random(f"sanity-{seed}")
    pairs = []
    for sample in samples:
        assert sample.truth is not None
        prompt, kind = sample.prompt[-1].text, sample.kind
        good = sample.truth["answer"] or caption(scene_from_truth(sample.truth))
        for _ in range(ATTEMPTS):
            bad = corrupt(sample, rng)
            if quality(sample.truth, kind, prompt, bad) < 0:
                pairs.append(KnownPair(sample=sample, good=good, bad=bad))
                break
    return pairs


def recorded_pairs(samples: Iterable[Sample], limit: int) -> list[KnownPair]:
    """The first `limit` samples that have both a chosen and a rejected answer."""
    pairs: list[KnownPair] = []
    for sample in samples:
        if len(pairs) == limit:
            break
        if sample.chosen and sample.rejected and sample.chosen != sample.rejected:
            pairs.append(KnownPair(sample=sample, good=sample.chosen, bad=sample.rejected))
    return pairs


def pair_items(pairs: Sequence[KnownPair]) -> list[JudgeItem]:
    """The good and the bad answer of each pair, next to each other."""
    return [known_item(pair.sample, text) for pair in pairs for text in (pair.good, pair.bad)]


def count_right(scores: Sequence[float | None]) -> SanityResult:
    """The result of scores in the order of `pair_items`; None is a failure."""
    pairs = list(zip(scores[0::2], scores[1::2], strict=True))
    known = [(good, bad) for good, bad in pairs if good is not None and bad is not None]
    return SanityResult(
        num_pairs=len(pairs),
        right=sum(good > bad for good, bad in known),
        ties=sum(good == bad for good, bad in known),
        failures=len(pairs) - len(known),
    )


def check(judge: Judge, pairs: Sequence[KnownPair]) -> SanityResult:
    """Let `judge` order the pairs."""
    return count_right([judgement.score for judgement in judge.judge(pair_items(pairs))])
