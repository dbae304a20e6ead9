"""Sums, flipped labels and the other controls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import Judgement, component_means, known_item, scored
from rewards.compose import SumJudge
from rewards.controls import FlippedJudge, LongestJudge
from trainers.data.records import Critique, Finding, Sample, Turn


class Fixed:
    """Gives the judgements that it was made with, in order."""

    def __init__(self, name, *judgements):
        self.name, self.judgements = name, list(judgements)

    def judge(self, items):
        return self.judgements[: len(items)]


def items(*texts: str, sample_ids: str = ""):
    ids = sample_ids or "s" * len(texts)
    return [
        known_item(Sample(id=id, prompt=(Turn(role="user", text="?"),)), text)
        for id, text in zip(ids, texts, strict=True)
    ]


def test_a_sum_has_every_parts_own_score_as_component():
    critique = Critique(text="c", findings=(Finding(claim="x", verdict="bad"),))
    first = Fixed("a", Judgement(score=3.0, components={"k": 7.0}))
    second = Fixed("b", Judgement(score=-1.0, critique=critique))
    judge = SumJudge([(2.0, first), (0.5, second)])
    assert judge.name == "sum(2 a, 0.5 b)"
    (judged,) = judge.judge(items("t"))
    assert judged.score == 5.5  # 2 * 3 - 0.5 * 1
    assert judged.components == {"a": 3.0, "a/k": 7.0, "b": -1.0}
    assert judged.critique is critique


def test_parts_of_one_name_are_numbered():
    parts = [(1.0, Fixed("a", Judgement(score=float(i)))) for i in range(3)]
    (judged,) = SumJudge(parts).judge(items("t"))
    assert judged.components == {"a#1": 0.0, "a#2": 1.0, "a#3": 2.0}


def test_a_part_that_fails_fails_the_item():
    first = Fixed("a", Judgement(score=1.0), Judgement(score=1.0))
    second = Fixed("b", Judgement(failure="broken"), Judgement(score=1.0))
    failed, good = SumJudge([(1.0, first), (1.0, second)]).judge(items("t", "u"))
    assert failed.score is None and failed.failure == "b: broken"
    assert good.score == 2.0


def test_flipping_mirrors_a_prompts_scores_at_their_mean():
    inner = Fixed("a", *(Judgement(score=s) for s in (1.0, 2.0, 6.0)), Judgement(failure="f"))
    judged = FlippedJudge(inner, 1.0, 0).judge(items("t", "u", "v", "w"))
    # mean 3: 5, 4, 0
    assert [j.score for j in judged] == [5.0, 4.0, 0.0, None]
    assert judged[0].components == {"flipped": 1.0} and judged[3].failure == "f"
    assert [j.score for j in FlippedJudge(inner, 0.0, 0).judge(items("t", "u"))] == [1.0, 2.0]


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=6))
def test_flipping_keeps_mean_and_spread_and_reverses_the_order(values):
    inner = Fixed("a", *(Judgement(score=value) for value in values))
    flipped = [j.score for j in FlippedJudge(inner, 1.0, 0).judge(items(*("t",) * len(values)))]
    assert sum(flipped) == pytest.approx(sum(values), abs=1e-6)
    for a, b, fa, fb in zip(values, values[1:], flipped, flipped[1:], strict=False):
        assert fa - fb == pytest.approx(b - a, abs=1e-6)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_share_is_of_prompts_and_larger_shares_flip_more_of_the_same(share):
    flips = [FlippedJudge(Fixed("a"), share, 3)._flips(f"s{i}") for i in range(2000)]
    assert abs(sum(flips) / 2000 - share) < 0.04  # four standard errors
    more = [FlippedJudge(Fixed("a"), min(1.0, share + 0.2), 3)._flips(f"s{i}") for i in range(2000)]
    assert all(later for earlier, later in zip(flips, more, strict=True) if earlier)


def test_all_answers_to_a_prompt_are_flipped_together():
    inner = Fixed("a", *(Judgement(score=float(i)) for i in range(40)))
    judged = FlippedJudge(inner, 0.5, 1).judge(
        items(*("t",) * 40, sample_ids="".join(chr(97 + i // 4) for i in range(40)))
    )
    marks = [j.components["flipped"] for j in judged]
    assert all(len(set(marks[i : i + 4])) == 1 for i in range(0, 40, 4))
    assert 0 < sum(marks) < 40


def test_the_longest_answer_wins():
    assert [j.score for j in LongestJudge().judge(items("a b c", "", "a"))] == [3.0, 0.0, 1.0]


def test_component_means_leave_failures_out():
    given = [
        Judgement(score=1.0, components={"a": 1.0}),
        Judgement(score=2.0, components={"a": 3.0, "b": 5.0}),
        Judgement(failure="x", components={"a": 100.0}),
    ]
    assert component_means(scored(items("t", "u", "v"), given, "j")) == {
        "judge/a": 2.0,
        "judge/b": 5.0,
    }
