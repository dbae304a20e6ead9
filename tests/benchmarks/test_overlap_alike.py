"""Judgements in one call against judgements in slices: a failure is no score of 0."""

from __future__ import annotations

from benchmarks.overlap import compared
from rewards.base import Judgement


def test_failures_are_compared_as_failures():
    whole = [Judgement(score=0.5), Judgement(failure="late"), Judgement(score=0.0)]
    parts = [Judgement(score=0.25), Judgement(score=0.0), Judgement(failure="late")]
    assert compared(whole, parts) == {
        "answers": 3,
        "equal_critiques": 3,
        "largest_score_gap": 0.25,
        "failures": 1,
        "unequal_failures": 2,
    }
    assert compared(whole, whole)["unequal_failures"] == 0
    assert compared(whole[1:2], whole[1:2])["largest_score_gap"] is None
