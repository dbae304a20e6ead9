"""Corrective turns by the short-answer template and by a text model, parsed strictly."""

from __future__ import annotations

import random

import pytest

from trainers.config import CorrectionsConfig, NSFTConfig
from trainers.correction_text import correction_request, read_turns, short_answer_correction
from trainers.data.records import Critique, Finding, PreferencePair, Turn
from trainers.nsft import NSFT

QUESTION = (Turn(role="user", text="what color is the circle at top-left ?", num_images=1),)


@pytest.fixture
def pair(make_scored):
    def make(right: str, wrong: str, **rejected):
        return PreferencePair(
            sample_id="s",
            chosen=make_scored("right", "s", 1.0, text=right),
            rejected=make_scored("wrong", "s", 0.0, text=wrong, **rejected),
            margin=1.0,
        )

    return make


def short(pair, **changes):
    settings = {"template": "{question} is the answer {answer} ?", "max_words": 5}
    return short_answer_correction(
        pair, QUESTION, yes="yes", no="no", rng=random.Random(0), **(settings | changes)
    )


def test_a_short_answer_is_doubled(pair):
    correction = short(pair("red", "Blue."))
    asked = {
        (question.text, answer.text)
        for question, answer in zip(correction.turns[::2], correction.turns[1::2], strict=True)
    }
    ask = "what color is the circle at top-left ? is the answer {} ?"
    assert asked == {(ask.format("red"), "yes"), (ask.format("Blue"), "no")}
    assert [turn.num_images for turn in correction.turns] == [1, 0, 0, 0]
    assert (correction.writer, correction.rollout_id) == ("short_answer", "wrong")


def test_what_the_template_cannot_correct_is_a_failure(pair):
    assert short(pair("red", "RED .")) is None
    assert short(pair("red", "a red circle at the top left")) is None
    assert short(pair("one two three", "four"), max_words=2) is None


def test_the_request_holds_codebook_answers_and_critique(pair, make_scored):
    scored = make_scored(
        "wrong", "s", 0.0, text="a cat", findings=(Finding(claim="cat", verdict="bad"),)
    )
    asked = pair("a dog", "a cat")
    text = correction_request(asked, QUESTION, max_turns=6, yes="Yes", no="No")
    assert "What a judge found wrong: not said" in text
    for word in ("existence", "attribute", "count", "scene", "spatial relation", "a dog", "a cat"):
        assert word in text
    assert QUESTION[0].text in text and "at most 6" in text and "A: <Yes or No>" in text
    critique = Critique(text="there is no cat", findings=scored.critique.findings)
    judged = PreferencePair(
        sample_id="s",
        chosen=asked.chosen,
        rejected=type(scored)(rollout=scored.rollout, judge="hand", score=0.0, critique=critique),
        margin=1.0,
    )
    text = correction_request(judged, QUESTION, max_turns=6, yes="Yes", no="No")
    assert "What a judge found wrong: there is no cat" in text


def test_turns_are_read_and_balanced():
    reply = """Here you are.
    Q: Is there a dog?
    A: Yes.
    Q: Is there a cat?
    A: no

    Q: Is it outdoors?
    A: yes"""
    assert read_turns(reply, max_turns=6, yes="yes", no="no") == [
        ("Is there a dog?", "yes"),
        ("Is there a cat?", "no"),
    ]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "0 yes and 0 no"),
        ("Q: Is there a dog?\nA: yes", "1 yes and 0 no"),
        ("Q: Is there a dog?", "not a question with its answer"),
        ("Q: one?\nQ: two?", "not a question with its answer"),
        ("Q: one?\nA: maybe", "neither yes nor no"),
        ("Q:\nA: yes", "neither yes nor no"),
        ("Q: one?\nA: yes\nQ: One?\nA: no", "asked twice"),
    ],
)
def test_other_replies_are_failures(reply, reason):
    with pytest.raises(ValueError, match=reason):
        read_turns(reply, max_turns=6, yes="yes", no="no")


def select(config, scored, sample, text_model=None):
    method = NSFT(config)
    method.text_model = text_model
    return method.select(scored, {sample.id: sample}, random.Random(0))


def test_nsft_counts_what_a_text_model_could_not_write(samples, make_scored):
    first, second = samples[:2]
    scored = [
        make_scored(f"{sample.id}/{score:g}", sample.id, score)
        for sample in (first, second)
        for score in (0.0, 1.0)
    ]
    config = NSFTConfig(corrections=CorrectionsConfig(writer="llm", model="anywhere"))
    asked: list[str] = []

    def model(requests):
        asked.extend(requests)
        return ["Q: one?\nA: yes\nQ: two?\nA: no", None]

    method = NSFT(config)
    method.text_model = model
    by_id = {sample.id: sample for sample in samples}
    selection = method.select(scored, by_id, random.Random(0))
    assert len(asked) == 2
    assert selection.stats["corrections"] == 1 == selection.stats["corrections_failed"]
    assert sorted(map(len, selection.groups)) == [1, 2]
    (correction,) = selection.corrections
    assert correction.writer == "llm" and len(correction.turns) == 4
    assert "text_model" not in method.__getstate__()


def test_claims_of_any_judge_become_turns(samples, make_scored):
    # What a claims judge (RLAIF-V) hands over are findings like any other's.
    sample = samples[0]
    claims = (
        Finding(claim="red circle", verdict="bad"),
        Finding(claim="blue cross", verdict="ok"),
    )
    scored = [
        make_scored("right", sample.id, 0.0, findings=claims[1:]),
        make_scored("wrong", sample.id, -1.0, findings=claims),
    ]
    selection = select(NSFTConfig(), scored, sample)
    (correction,) = selection.corrections
    texts = [turn.text for turn in correction.turns]
    asked = dict(zip(texts[::2], texts[1::2], strict=True))
    assert asked == {"is there a red circle ?": "no", "is there a blue cross ?": "yes"}
    assert correction.writer == "template"


def test_writer_and_model_go_together():
    for wrong in ({"writer": "llm"}, {"model": "folder"}):
        with pytest.raises(ValueError, match="go together"):
            CorrectionsConfig(**wrong)
