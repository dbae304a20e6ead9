"""What a judge is: from a response to a score, or to a failure with its reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from trainers.data.records import Critique, Rollout, Sample, ScoredRollout


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeItem:
    """One response to judge."""

    sample: Sample
    rollout: Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Exactly one of `score` (finite) and `failure` is set."""

    score: float | None = None
    failure: str | None = None
    critique: Critique | None = None
    components: dict[str, float] = field(default_factory=dict)


class Judge(Protocol):
    """Anything that scores responses; its name goes into the records."""

    name: str

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """One judgement per item, in order."""


def scored(
    items: Sequence[JudgeItem], judgements: Sequence[Judgement], judge: str
) -> list[ScoredRollout]:
    """Attach judgements to their rollouts. A score that is not finite becomes a failure."""
    results = []
    for item, judgement in zip(items, judgements, strict=True):
        score, failure = judgement.score, judgement.failure
        if failure is None and (score is None or not math.isfinite(score)):
            score, failure = None, f"judge {judge} returned {score}"
        results.append(
            ScoredRollout(
                rollout=item.rollout,
                judge=judge,
                score=score,
                failure=failure,
                critique=judgement.critique,
                components=judgement.components,
            )
        )
    return results
