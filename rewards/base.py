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


def known_item(sample: Sample, text: str) -> JudgeItem:
    """A text that no policy sampled, as something to judge: no tokens, complete."""
    rollout = Rollout(
        id=f"{sample.id}/{text}",
        sample_id=sample.id,
        text=text,
        token_ids=(),
        logprobs=(),
        policy_version=0,
        seed=0,
        temperature=0.0,
        finish_reason="stop",
        prompt_tokens=0,
    )
    return JudgeItem(sample=sample, rollout=rollout)


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


def component_means(judged: Sequence[ScoredRollout]) -> dict[str, float]:
    """`judge/NAME`: the mean of each component over the rollouts that have it and a score."""
    values: dict[str, list[float]] = {}
    for item in judged:
        if item.score is not None:
            for name, value in item.components.items():
                values.setdefault(f"judge/{name}", []).append(value)
    return {name: sum(given) / len(given) for name, given in values.items()}
