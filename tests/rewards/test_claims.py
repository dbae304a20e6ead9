"""Divide and conquer: counting denials, and the drawn world's exact claims."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.asking import Failed
from rewards.base import known_item
from rewards.claims import Claim, ClaimsJudge, verdict
from rewards.drawn_claims import drawn_claims
from trainers.data.records import Sample, Turn
from trainers.data.scenes import COLORS, POSITIONS


def item(text: str, prompt: str = "describe the image .", id: str = "s"):
    turns = (Turn(role="user", text=prompt, num_images=1),)
    return known_item(Sample(id=id, prompt=turns, images=(f"hash-{id}",)), text)


class Labeler:
    """Knows which existence questions are right to affirm; remembers what it was asked."""

    def __init__(self, true: set[str]):
        self.true = true
        self.asked: list[tuple[str, str]] = []

    def __call__(self, prompts, words):
        self.asked += [(prompt.images[0], prompt.turns[0].text) for prompt in prompts]
        answers = []
        for prompt in prompts:
            yes = 0.7 if prompt.turns[0].text in self.true else 0.2
            # Half of "yes" is spelled with a capital; the rest of the mass is on other words.
            answers.append({"yes": yes / 2, "Yes": yes / 2, "no": 0.4, "No": 0.1})
        return answers


def test_the_score_is_minus_the_number_of_denied_claims():
    # Five claims, two of them denied: S = 3 - 5 = -2 (RLAIF-V).
    said = ["red circle", "blue square", "green cross", "white circle", "purple triangle"]
    text = " ".join(
        f"{place} {name} ." for place, name in zip((*POSITIONS, "top-left"), said, strict=True)
    )
    labeler = Labeler({f"is there a {name} ?" for name in said[:3]})
    (judged,) = ClaimsJudge(drawn_claims, labeler).judge([item(text)])
    assert judged.score == -2.0
    assert judged.components == {"claims": 5.0, "denied": 2.0}
    findings = judged.critique.findings
    assert [finding.verdict for finding in findings] == ["ok", "ok", "ok", "bad", "bad"]
    for finding, name in zip(findings, said, strict=True):
        assert finding.claim == name and finding.kind == "existence"
        assert text[slice(*finding.span)].endswith(name)


def test_nothing_denied_is_0_and_a_tie_denies_nothing():
    (judged,) = ClaimsJudge(drawn_claims, Labeler({"is there a red circle ?"})).judge(
        [item("top-left red circle .")]
    )
    assert judged.score == 0.0
    claim = Claim(text="x", question="is there a x ?")
    assert not verdict(claim, {"yes": 0.2, "Yes": 0.1, "no": 0.3, "No": 0.0}).denied
    assert verdict(claim, {"yes": 0.2, "Yes": 0.1, "no": 0.3, "No": 0.01}).denied


def test_a_claim_made_twice_counts_twice_and_is_asked_once():
    labeler = Labeler(set())
    items = [item("top-left red circle . top-left red circle ."), item("top-right red circle .")]
    scores = [judged.score for judged in ClaimsJudge(drawn_claims, labeler).judge(items)]
    assert scores == [-2.0, -1.0]
    assert labeler.asked == [("hash-s", "is there a red circle ?")]
    # The same question about another image is another question.
    ClaimsJudge(drawn_claims, labeler).judge([*items, item("top-left red circle .", id="t")])
    assert len(labeler.asked) == 3


@pytest.mark.parametrize(
    ("answer", "true", "score", "verdict"),
    [("yes", True, 0, "ok"), ("yes", False, -1, "bad"), ("no", False, 0, "absent"),
     ("no", True, -1, "missing")],
)  # fmt: skip
def test_answers_to_existence_questions(answer, true, score, verdict):
    question = "is there a red circle ?"
    labeler = Labeler({question} if true else set())
    (judged,) = ClaimsJudge(drawn_claims, labeler).judge([item(answer, question)])
    assert judged.score == score
    (finding,) = judged.critique.findings
    assert (finding.claim, finding.verdict) == ("red circle", verdict)


def test_a_word_is_tested_against_all_words_of_its_sort():
    def labeler(prompts, words):
        assert tuple(words) == COLORS
        return [dict.fromkeys(COLORS, 0.1) | {"blue": 0.3} for _ in prompts]

    question = "what color is the circle at top-left ?"
    items = [item("red", question), item("blue", question)]
    bad, good = ClaimsJudge(drawn_claims, labeler).judge(items)
    assert (bad.score, good.score) == (-1.0, 0.0)
    assert bad.critique.findings[0].correction == "blue"
    assert bad.critique.findings[0].kind == "attribute"


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("", "describe the image ."),
        ("the the the", "describe the image ."),
        ("red", "is there a red circle ?"),
        ("yes", "how many circles are there ?"),
    ],
)
def test_what_makes_no_claim_is_a_failure_not_a_0(text, prompt):
    (judged,) = ClaimsJudge(drawn_claims, Labeler(set())).judge([item(text, prompt)])
    assert judged.score is None and judged.failure.startswith("claims: ")


def test_a_question_that_fails_fails_its_item_alone():
    def labeler(prompts, words):
        return [
            Failed("too long")
            if "red" in prompt.turns[0].text
            else {"yes": 1.0, "Yes": 0.0, "no": 0.0, "No": 0.0}
            for prompt in prompts
        ]

    items = [item("top-left red circle ."), item("top-left blue circle .")]
    first, second = ClaimsJudge(drawn_claims, labeler).judge(items)
    assert first.failure == "claims: is there a red circle ?: too long" and first.score is None
    assert second.score == 0.0


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_the_score_never_exceeds_0_nor_falls_below_minus_the_claims(truths):
    names = [f"{color} {shape}" for color in COLORS for shape in ("circle", "cross")]
    text = " ".join(f"{name} ." for name in names[: len(truths)])
    true = {f"is there a {n} ?" for n, yes in zip(names, truths, strict=False) if yes}
    (judged,) = ClaimsJudge(drawn_claims, Labeler(true)).judge([item(text)])
    assert judged.score == -truths.count(False)
