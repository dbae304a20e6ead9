"""ACC and ACC+ by hand."""

from __future__ import annotations

from trainers.benchmarks.reward_bench import reward_bench_metrics
from trainers.data.preferences import ReasonedPair
from trainers.data.records import Sample, Turn


def pair(group: str, category: str = "long", *, is_tie: bool = False) -> ReasonedPair:
    sample = Sample(id="s", prompt=(Turn(role="user", text="?"),))
    return ReasonedPair(
        group=group, category=category, sample=sample, chosen="a", rejected="b", is_tie=is_tie
    )


def test_acc_plus_wants_every_pair_of_a_question():
    pairs = [pair("q1"), pair("q1"), pair("q2"), pair("q3", "mcq"), pair("q4", "mcq")]
    scores = [(2.0, 1.0), (1.0, 2.0), (3.0, 0.0), (1.0, 1.0), None]
    # right, wrong | right | equal is wrong | not judged is no answer: 2 of 4, questions: 1 of 3
    result = reward_bench_metrics(pairs, scores)
    assert result["acc"] == 0.5 and result["acc_plus"] == 1 / 3
    assert (result["acc_long"], result["acc_plus_long"]) == (2 / 3, 0.5)
    assert (result["acc_mcq"], result["acc_plus_mcq"]) == (0.0, 0.0)
    assert result["failed_pairs"] == 1 and result["pairs"] == 5


def test_ties_have_no_order():
    result = reward_bench_metrics([pair("a"), pair("a", is_tie=True)], [(1.0, 0.0), (0.0, 5.0)])
    assert result["acc"] == result["acc_plus"] == 1.0 and result["pairs"] == 1
    only = reward_bench_metrics([pair("a", is_tie=True)], [(0.0, 1.0)])
    assert only == {"pairs": 0.0, "failed_pairs": 0.0}
