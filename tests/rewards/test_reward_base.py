"""Judgements become scored rollouts: in order, with the judge's name, failures kept apart."""

from __future__ import annotations

import pytest

from rewards.base import JudgeItem, Judgement, scored
from trainers.data.records import Critique, ScoredRollout


@pytest.fixture
def items(samples, make_scored):
    return [
        JudgeItem(sample=samples[0], rollout=make_scored(f"r{i}", samples[0].id, 0.0).rollout)
        for i in range(3)
    ]


def test_judgements_are_attached_in_order(items):
    critique = Critique(text="all ok")
    judgements = [
        Judgement(score=1.5, critique=critique, components={"unparsed": 0.0}),
        Judgement(failure="critique: too long"),
        Judgement(score=float("nan")),
    ]
    results = scored(items, judgements, "hand")
    assert [result.rollout.id for result in results] == ["r0", "r1", "r2"]
    assert results[0].score == 1.5 and results[0].critique is critique
    assert results[0].components == {"unparsed": 0.0}
    assert results[1].failure == "critique: too long" and results[1].score is None
    assert results[2].failure == "judge hand returned nan"


def test_a_judge_that_skips_an_item_is_an_error(items):
    with pytest.raises(ValueError, match="argument 2"):
        scored(items, [Judgement(score=1.0)], "hand")


def test_neither_or_both_of_score_and_failure_is_refused(items):
    rollout = items[0].rollout
    for wrong in ({}, {"score": 1.0, "failure": "x"}):
        with pytest.raises(ValueError, match="r0: exactly one"):
            ScoredRollout(rollout=rollout, judge="hand", **wrong)
