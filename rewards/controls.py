"""Judges that must lose: controls against which a real one is shown to be worth something.

* `FlippedJudge`: labels flipped on a share of the prompts. mllm-dpo (arXiv 2402.10884) flips 25, 50
  and 75 % of its labels, and the result falls each time.
* `LongestJudge`: the longest answer is the best. VLFeedback: worse than no training at all.
* Chance (`rewards.rules.RandomJudge`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from rewards.base import Judge, JudgeItem, Judgement


class FlippedJudge:
    """Reverses another judge's order among the answers to a share of the prompts.

        flipped score = 2 * mean of the prompt's scores - score

    so that the prompt's mean and spread stay, and with them the scale of everything that is made of
    the scores. Which prompts are flipped depends on seed and sample alone. Critiques stay as they
    are: a flipped pair gives nSFT a rejected answer with nothing to correct, which it counts.
    """

    def __init__(self, judge: Judge, share: float, seed: int):
        self.name = f"flipped({share:g}, {judge.name})"
        self._judge, self.share, self.seed = judge, share, seed

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """One judgement per item; `flipped` is among its components."""
        judgements = self._judge.judge(items)
        means = _means(items, judgements)
        results = []
        for item, judgement in zip(items, judgements, strict=True):
            flipped = self._flips(item.sample.id)
            score = judgement.score
            if score is not None and flipped:
                score = 2 * means[item.sample.id] - score
            components = judgement.components | {"flipped": float(flipped)}
            results.append(replace(judgement, score=score, components=components))
        return results

    def _flips(self, sample_id: str) -> bool:
        digest = hashlib.sha256(f"{self.seed}/{sample_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64


def _means(items: Sequence[JudgeItem], judgements: Sequence[Judgement]) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for item, judgement in zip(items, judgements, strict=True):
        if judgement.score is not None:
            scores.setdefault(item.sample.id, []).append(judgement.score)
    return {id: sum(values) / len(values) for id, values in scores.items()}


class LongestJudge:
    """The number of words is the score."""

    name = "longest"

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """One judgement per item."""
        return [Judgement(score=float(len(item.rollout.text.split()))) for item in items]
