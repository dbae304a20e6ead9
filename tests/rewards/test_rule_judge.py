"""Right answers and penalties, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rewards.base import JudgeItem, known_item
from rewards.config import RulesConfig
from rewards.right_answers import fact_rlhf_bonus, is_correct
from rewards.rule_judge import RuleJudge
from trainers.data.records import Sample, Turn


def item(text: str, answer: str | None, tokens: int = 0, finish: str = "stop") -> JudgeItem:
    sample = Sample(id="s", prompt=(Turn(role="user", text="?"),), truth={"answer": answer})
    known = known_item(sample, text)
    rollout = replace(
        known.rollout, token_ids=(5,) * tokens, logprobs=(0.0,) * tokens, finish_reason=finish
    )
    return JudgeItem(sample=sample, rollout=rollout)


@pytest.mark.parametrize(
    ("answer", "response", "right"),
    [
        ("yes", "Yes, there is.", True),
        ("no", "NO", True),
        ("no", "nothing there", False),
        ("yes", "I think yes", False),
        ("yes", "", False),
        ("B", "B", True),
        ("B", "(B) a dog", True),
        ("B", "B. a dog", True),
        ("B", "The answer is B.", True),
        ("B", "A. The answer is B", False),
        ("B", "Bananas", False),
        ("A", "A dog is there", True),  # no way to tell: documented as the letter first
        ("two", "Two.", True),
        ("a dog", "The dog", True),
        ("two", "two or three", False),
        ("7", "7", True),
    ],
)
def test_correctness(answer, response, right):
    assert is_correct(answer, response) == right


@pytest.mark.parametrize(
    ("answer", "response", "bonus"),
    [("No", "No.", 0.5), ("No", "Yes.", -0.5), ("No", "maybe", 0.0), ("Yes", "Yes.", 0.0),
     ("Yes", "No.", 0.0), ("B", "B", 1.0), ("B", "C", 0.0)],
)  # fmt: skip
def test_the_bonus_of_fact_rlhf_never_rewards_a_yes(answer, response, bonus):
    assert fact_rlhf_bonus(answer, response) == bonus


def test_the_score_adds_answer_length_and_eos():
    config = RulesConfig(answer_weight=2.0, length_penalty=10.0, missing_eos_penalty=8.0)
    judge = RuleJudge(config, max_tokens=64)
    right, cut = judge.judge([item("yes", "yes", 16), item("no", "yes", 64, "length")])
    # 2 - 10 * 16 / 64 = -0.5; 0 - 10 - 8 = -18
    assert right.score == -0.5 and right.components == {"answer": 2.0, "length": -2.5, "eos": -0.0}
    assert cut.score == -18.0 and cut.components == {"answer": 0.0, "length": -10.0, "eos": -8.0}


def test_a_prompt_without_a_right_answer_fails_unless_it_may_be_skipped():
    (failed,) = RuleJudge(RulesConfig(), 64).judge([item("x", None)])
    assert failed.score is None and "judge.unanswerable=skip" in failed.failure
    (skipped,) = RuleJudge(RulesConfig(unanswerable="skip", length_penalty=1.0), 64).judge(
        [item("x", None, 32)]
    )
    assert skipped.score == -0.5 and "answer" not in skipped.components
    (off,) = RuleJudge(RulesConfig(answers="off"), 64).judge([item("x", None)])
    assert off.score == 0.0
