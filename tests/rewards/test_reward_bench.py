"""ACC and ACC+ by hand."""

from __future__ import annotations

from rewards.bench import accuracies
from trainers.data.preferences import ReasonedPair
from trainers.data.records import Sample, Turn


def pair(group: str, category: str = "long", *, is_tie: bool = False) -> ReasonedPair:
    sample = Sample(id="s", prompt=(Turn(role="user", text="?"),))
    return ReasonedPair(
        group=group, category=category, sample=sample, chosen="a", rejected="b", is_tie=is_tie
    )


def test_acc_plus_wants_every_pair_of_a_question():
    pairs = [pair("q1"), pair("q1"), pair("q2"), pair("q3", "mcq"), pair("q4", "mcq")]
    scores = [(2.0, 1.0), (1.0, 2.0), (3.0, 0.0), (1.0, 1.0), (None, 0.0)]
    # right, wrong | right | equal is wrong | not judged is wrong: 2 of 5, questions: 1 of 4
    result = accuracies(pairs, scores)
    assert result["acc"] == 0.4 and result["acc_plus"] == 0.25
    assert (result["acc/long"], result["acc_plus/long"]) == (2 / 3, 0.5)
    assert (result["acc/mcq"], result["acc_plus/mcq"]) == (0.0, 0.0)
    assert result["not_judged"] == 1 and result["pairs"] == 5


def test_ties_have_no_order():
    result = accuracies([pair("a"), pair("a", is_tie=True)], [(1.0, 0.0), (0.0, 5.0)])
    assert result["acc"] == result["acc_plus"] == 1.0 and result["pairs"] == 1
    assert accuracies([pair("a", is_tie=True)], [(0.0, 1.0)]) == {"not_judged": 0.0}
