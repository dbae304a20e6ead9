"""The critique grammar: what is written from the truth is read back, and nothing else is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.critique import parse_critique, quality, write_critique
from trainers.data.records import Finding
from trainers.data.scenes import Scene, Shape, caption, draw_exists, draw_question, draw_scene

SCENE = Scene(
    (
        Shape("red", "circle", "top"),
        Shape("red", "circle", "left"),
        Shape("green", "cross", "bottom"),
    )
)


@pytest.mark.parametrize(
    ("response", "critique", "score"),
    [
        (caption(SCENE), "red circle ok red circle ok green cross ok", 0),
        (
            "a red circle top . a blue square left .",
            "red circle ok blue square bad missing red circle missing green cross",
            -3,
        ),
        # the third red circle is one too many
        (
            "a red circle . a red circle . a red circle . a green cross .",
            "red circle ok red circle ok red circle bad green cross ok",
            -1,
        ),
        ("", "missing red circle missing red circle missing green cross", -3),
    ],
)
def test_captions_by_hand(response: str, critique: str, score: float) -> None:
    truth = SCENE.truth()
    assert write_critique(truth, "describe", "describe the image .", response).text == critique
    assert quality(truth, "describe", "describe the image .", response) == score


@pytest.mark.parametrize(
    ("answer", "response", "critique", "score"),
    [
        ("yes", "yes", "red ring ok", 0),
        ("no", "yes", "red ring bad", -1),
        ("yes", "no", "missing red ring", -1),
        ("no", "no", "no red ring ok", 0),
        ("no", "yes yes", "nothing bad no", -1),
        ("yes", "red", "red bad yes", -1),
    ],
)
def test_exists_by_hand(answer: str, response: str, critique: str, score: float) -> None:
    truth, question = SCENE.truth(answer), "is there a red ring ?"
    assert write_critique(truth, "exists", question, response).text == critique
    assert quality(truth, "exists", question, response) == score


@pytest.mark.parametrize(
    ("response", "critique"),
    [("two", "two ok"), ("three", "three bad two"), ("a red ring", "nothing bad two")],
)
def test_questions_by_hand(response: str, critique: str) -> None:
    truth = SCENE.truth("two")
    assert write_critique(truth, "question", "how many circles are there ?", response).text == (
        critique
    )


def test_parse_gives_kind_and_correction() -> None:
    assert parse_critique("three bad two") == (
        Finding(claim="three", verdict="bad", kind="count", correction="two"),
    )
    assert parse_critique("red circle bad missing blue ring") == (
        Finding(claim="red circle", verdict="bad"),
        Finding(claim="blue ring", verdict="missing"),
    )
    assert parse_critique("no red circle ok") == (Finding(claim="red circle", verdict="absent"),)


@pytest.mark.parametrize(
    "text",
    ["", "red circle", "red circle fine", "circle red ok", "missing red", "no red circle bad",
     "two bad", "nothing ok", "red circle ok red", "circle ok"],
)  # fmt: skip
def test_malformed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="critique"):
        parse_critique(text)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown prompt kind"):
        write_critique(SCENE.truth(), "poem", "", "")


@given(st.integers(0, 2**32), st.sampled_from(["describe", "question", "exists"]))
def test_written_is_read_back(seed: int, kind: str) -> None:
    rng = random.Random(seed)
    scene, other = draw_scene(rng), draw_scene(rng)
    prompt, answer = "describe the image .", None
    if kind == "question":
        prompt, answer = draw_question(scene, rng)
    if kind == "exists":
        prompt, answer = draw_exists(scene, rng)
    for response in ("yes", "no", "two", "red", "two two", caption(other), caption(scene)):
        critique = write_critique(scene.truth(answer), kind, prompt, response)
        assert parse_critique(critique.text) == critique.findings
    truth = answer or caption(scene)
    assert quality(scene.truth(answer), kind, prompt, truth) == 0
