"""What is written and shown of a finished round."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from cluster.arm import Arm
from cluster.session import Session
from rewards.base import component_means
from trainers.comparison import CurvePoint
from trainers.data.records import BY_SOURCE, Sample, ScoredRollout


def report_round(
    session: Session,
    arm: Arm,
    number: int,
    samples: Mapping[str, Sample],
    judged: Sequence[ScoredRollout],
    metrics: dict[str, float],
    parity: float | None,
    seconds: float,
) -> None:
    """One line on the terminal, one line in metrics.jsonl, one point of the curve."""
    by_judge = [item for item in judged if item.judge != BY_SOURCE]
    scores = np.array([item.score for item in by_judge if item.score is not None])
    metrics = metrics | component_means(judged)
    point = CurvePoint(
        round=number,
        score=float(scores.mean()) if len(scores) else None,
        score_std=float(scores.std()) if len(scores) else None,
        kl=metrics.get("objective/kl"),
        chair_i=metrics.get("chair_i"),
        chair_s=metrics.get("chair_s"),
        recall=metrics.get("recall"),
        response_length=metrics.get("response_length"),
        loss=metrics.get("loss"),
        clip_fraction=metrics.get("policy/clipfrac"),
        explained_variance=metrics.get("val/explained_variance"),
        pairs=int(metrics["pairs/num"]) if "pairs/num" in metrics else None,
        rollouts=len(judged),
        judge_calls=len(by_judge),
        parity=parity,
        seconds=seconds,
        extra=dict(metrics),
    )
    arm.result.curve.append(point)
    line = {"arm": arm.name, **point.model_dump(exclude={"extra"}), **metrics}
    line |= session.traffic.take()
    with (arm.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    shown = {
        "score": point.score,
        "score_std": point.score_std,
        "kl": point.kl,
        "loss": point.loss,
        "pairs": point.pairs,
        "ev": point.explained_variance,
        "chair_i": point.chair_i,
        "recall": point.recall,
        "parity": parity,
        "seconds": seconds,
    }
    if judged:
        show_sample(session, samples, judged)
    session.console.round_line(
        arm.name, number, arm.config.rounds, {k: v for k, v in shown.items() if v is not None}
    )


def show_sample(
    session: Session, samples: Mapping[str, Sample], judged: Sequence[ScoredRollout]
) -> None:
    """The round's worst-judged response, which tells most about policy and judge."""
    worst = min(judged, key=lambda item: float("-inf") if item.score is None else item.score)
    session.console.sample(
        samples[worst.rollout.sample_id].prompt[-1].text,
        worst.rollout.text,
        worst.critique.text if worst.critique else None,
        worst.score if worst.score is not None else worst.failure,
    )
