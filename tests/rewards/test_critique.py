"""The critique grammar: what is written from the truth is read back, and nothing else is."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.critique import CRITIQUE_REQUEST, parse_critique, quality, write_critique
from rewards.drawn_pairs import corrupt
from trainers.data.drawn_model import WORDS
from trainers.data.drawn_sft import biased_answer, biased_caption
from trainers.data.records import Finding, Sample, Turn
from trainers.data.scenes import (
    Scene,
    Shape,
    caption,
    draw_exists,
    draw_question,
    draw_scene,
    parse_mentions,
)

SCENE = Scene(
    (
        Shape("red", "circle", "top-left"),
        Shape("red", "circle", "bottom-left"),
        Shape("green", "cross", "bottom-right"),
    )
)
LISTING = "image top-left red circle bottom-left red circle bottom-right green cross . "
REST_SAID = "bottom-left red circle . bottom-right green cross ."
TOP_LEFT = "top-left red circle red yes circle ok "
REST = "bottom-left red circle red yes circle ok bottom-right green cross green yes cross ok"


@pytest.mark.parametrize(
    ("response", "critique", "score"),
    [
        (caption(SCENE), TOP_LEFT + REST, 0),
        # any order is right, and the critique follows it
        (
            "bottom-right green cross . bottom-left red circle . top-left red circle .",
            (
                "bottom-right green cross green yes cross ok "
                "bottom-left red circle red yes circle ok top-left red circle red yes circle ok"
            ),
            0,
        ),
        # another object's place and an empty one; two objects are left out
        (
            "top-left blue square . top-right white cross . bottom-left red circle .",
            (
                "top-left blue square red no circle bad "
                "top-right white cross nothing no there bad "
                "bottom-left red circle red yes circle ok missing bottom-right green cross"
            ),
            -3,
        ),
        (
            f"top-left red circle . top-left red circle . {REST_SAID}",
            f"{TOP_LEFT}top-left red circle red yes circle again {REST}",
            -1,
        ),
        # a place named twice, rightly once: the wrong claim counts, nothing is missing
        (
            f"top-left blue square . top-left red circle . {REST_SAID}",
            f"top-left blue square red no circle bad {TOP_LEFT}{REST}",
            -1,
        ),
        # what is wrong the first time is wrong the second time too, not "again"
        (
            f"top-left blue square . top-left blue square . {REST_SAID}",
            f"{'top-left blue square red no circle bad ' * 2}{REST}",
            -2,
        ),
        # both are in the image, but each at the other's place
        (
            "top-left green cross . bottom-left red circle . bottom-right red circle .",
            (
                "top-left green cross red no circle bad bottom-left red circle red yes circle ok "
                "bottom-right red circle green no cross bad"
            ),
            -2,
        ),
        # without a place nothing is said about that place
        (
            f"a red circle . {REST_SAID}",
            f"nowhere red circle bad {REST} missing top-left red circle",
            -2,
        ),
        (
            "",
            (
                "missing top-left red circle missing bottom-left red circle "
                "missing bottom-right green cross"
            ),
            -3,
        ),
    ],
)
def test_captions_by_hand(response: str, critique: str, score: float) -> None:
    truth = SCENE.truth()
    assert write_critique(truth, "describe", "describe the image .", response).text == critique
    assert quality(truth, "describe", "describe the image .", response) == score


@pytest.mark.parametrize(
    ("asked", "answer", "response", "verdict", "score"),
    [
        ("red circle", "yes", "yes", "red circle yes yes ok", 0),
        ("blue square", "no", "yes", "blue square yes no bad", -1),
        ("red circle", "yes", "no", "red circle no yes bad", -1),
        ("blue square", "no", "no", "blue square no no ok", 0),
        ("blue square", "no", "yes yes", "blue square nothing no bad", -1),
        ("red circle", "yes", "red", "red circle red yes bad", -1),
    ],
)
def test_exists_by_hand(asked: str, answer: str, response: str, verdict: str, score: float) -> None:
    truth, question = SCENE.truth(answer), f"is there a {asked} ?"
    assert write_critique(truth, "exists", question, response).text == LISTING + verdict
    assert quality(truth, "exists", question, response) == score


@pytest.mark.parametrize(
    ("question", "answer", "response", "verdict"),
    [
        (
            "how many circles are there ?",
            "two",
            "two",
            "circles two circles top-left bottom-left two ok",
        ),
        ("how many crosses are there ?", "one", "two", "crosses two crosses bottom-right one bad"),
        ("how many squares are there ?", "zero", "a cross", "squares nothing squares zero bad"),
        (
            "where is the green cross ?",
            "bottom-right",
            "top-left",
            "green cross top-left green cross bottom-right bad",
        ),
        (
            "what color is the cross at bottom-right ?",
            "green",
            "green",
            "bottom-right green bottom-right green ok",
        ),
    ],
)
def test_questions_by_hand(question: str, answer: str, response: str, verdict: str) -> None:
    truth = SCENE.truth(answer)
    assert write_critique(truth, "question", question, response).text == LISTING + verdict


@pytest.mark.parametrize(
    ("item", "finding"),
    [
        ("top-left red circle red yes circle ok", Finding(claim="red circle", verdict="ok")),
        (
            "top-left red circle blue no square bad",
            Finding(claim="red circle", verdict="bad", correction="blue square"),
        ),
        # miscopied by the judge: still about the first mention
        (
            "top-left blue circle blue yes square bad",
            Finding(claim="red circle", verdict="bad", correction="blue square"),
        ),
        ("top-left red circle nothing no there bad", Finding(claim="red circle", verdict="bad")),
        (
            "top-left red circle red yes circle again",
            Finding(claim="red circle", verdict="bad", kind="count"),
        ),
        ("nowhere red circle bad", Finding(claim="red circle", verdict="bad", kind="relation")),
    ],
)
def test_the_nth_item_is_about_the_nth_mention(item: str, finding: Finding) -> None:
    assert parse_critique(item, "top-left red circle .") == (finding,)
    first = Finding(claim="white cross", verdict="ok")
    last = Finding(claim="green cross", verdict="missing")
    text = f"top-right white cross white yes cross ok {item} missing bottom-left green cross"
    response = "top-right white cross . top-left red circle ."
    assert parse_critique(text, response) == (first, finding, last)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top-left red circle red yes circle ok", "fewer items than mentions"),
        ("missing top-left red circle", "fewer items than mentions"),
        ("top-left red circle red yes circle ok " * 3, "more items than mentions"),
    ],
)
def test_one_item_per_mention(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_critique(text, "top-left red circle . top-left red circle .")


@pytest.mark.parametrize(
    ("response", "verdict", "finding"),
    [
        ("yes", "red circle yes yes ok", Finding(claim="red circle", verdict="ok")),
        ("yes", "red circle yes no bad", Finding(claim="red circle", verdict="bad")),
        ("no", "red circle no yes bad", Finding(claim="red circle", verdict="missing")),
        ("no", "red circle no no ok", Finding(claim="red circle", verdict="absent")),
        (
            "two",
            "circles two circles top-left bottom-left two ok",
            Finding(claim="two", verdict="ok", kind="count"),
        ),
        (
            "two",
            "circles two circles top-left one bad",
            Finding(claim="two", verdict="bad", kind="count", correction="one"),
        ),
        (
            "red",
            "top-left red top-left blue bad",
            Finding(claim="red", verdict="bad", kind="attribute", correction="blue"),
        ),
        (
            "who knows",
            "red circle nothing red circle top-left bad",
            Finding(claim="nothing", verdict="bad", kind="relation", correction="top-left"),
        ),
        # no question "is there a red ?" may come of these, hence not of kind existence
        (
            "red",
            "red circle red yes bad",
            Finding(claim="red", verdict="bad", kind="text", correction="yes"),
        ),
        (
            "who knows",
            "red circle nothing no bad",
            Finding(claim="nothing", verdict="bad", kind="text", correction="no"),
        ),
    ],
)
def test_listed_objects_are_affirmed_before_the_verdict(
    response: str, verdict: str, finding: Finding
) -> None:
    text = f"image top-left red circle bottom-right blue cross . {verdict}"
    red, blue = (Finding(claim=claim, verdict="ok") for claim in ("red circle", "blue cross"))
    assert parse_critique(text, response) == (red, blue, finding)


@pytest.mark.parametrize(
    "text",
    ["", "red circle ok", "red circle top-left red circle ok", "top-left ok", "top-left red circle",
     "top-left red circle nothing yes there bad", "top-left red circle nothing no there ok",
     "top-left red circle nothing bad",
     "top-left red circle blue ok", "left red circle red circle ok",
     "top-left red circle red circle", "top-left red circle red yes circle",
     "top-left red circle red yes circle ok bad", "top-left red circle red again circle ok",
     "top-left red circle red no circle ok",
     "top-left red circle red no circle again", "top-left red circle red circle ok",
     "top-left red circle red circle missing",
     "nowhere red circle ok", "nowhere bad", "two two ok", "red circle no no ok",
     "top-left red circle red yes circle ok red",
     "top-left red circle red yes circle ok missing red circle",
     "top-left red circle red yes circle ok missing red",
     "top-left red circle red yes circle ok missing top-left red circle top-left",
     "image", "image .", "image . red circle yes yes ok",
     "image red circle . red circle yes yes ok",
     "image top-left red circle red circle yes yes ok", "image top-left red circle .",
     "image top-left red circle . two bad", "image top-left red circle . two two ok",
     "image top-left red circle . red circle two red circle two ok",
     "image top-left red circle . circles ok",
     "image top-left red circle . top-left red top-left top-left ok",
     "image top-left red circle . red circle yes red circle yes ok",
     "image top-left red circle . red circle top-left top-left ok",
     "image top-left red circle . red circle red red top-left ok",
     "image top-left red circle . top-left red bottom-left red ok",
     "image top-left red circle . circles two circles red two ok",
     "image top-left red circle . red circle top-left red circle top-left again",
     "image top-left red circle . red circle red yes again",
     "image top-left red circle . red circle yes yes again",
     "image top-left red circle . red circle circle yes bad"],
)  # fmt: skip
def test_malformed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"malformed|than mentions"):
        parse_critique(text, "top-left red circle .")


def test_saying_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="empty critique"):
        parse_critique("", "two")


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown prompt kind"):
        write_critique(SCENE.truth(), "poem", "", "")


def is_perfect(scene: Scene, answer: str | None, response: str) -> bool:
    """By a rule of its own: the answer, or each object named once at its place and no more."""
    if answer is not None:
        return response == answer
    said = [(m.color, m.shape, m.position or "") for m in parse_mentions(response)]
    return sorted(said) == sorted((o.color, o.shape, o.position) for o in scene.objects)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["describe", "question", "exists"]))
def test_written_is_read_back_and_perfect_is_zero(seed: int, kind: str) -> None:
    rng = random.Random(seed)
    scene, other = draw_scene(rng), draw_scene(rng)
    prompt, answer = "describe the image .", None
    if kind != "describe":
        prompt, answer = (draw_question if kind == "question" else draw_exists)(scene, rng)
    truth = scene.truth(answer)
    sample = Sample(id="s", prompt=(Turn(role="user", text=prompt),), kind=kind, truth=truth)
    responses = [answer or caption(scene), *(corrupt(sample, rng) for _ in range(5))]
    responses += ["yes", "no", "two", "red", "two two", "", "a red circle", caption(other)]
    responses.append(biased_caption(scene, rng))
    if answer is not None:
        responses.append(biased_answer(scene, prompt, answer, rng))
    for response in responses:
        critique = write_critique(truth, kind, prompt, response)
        assert parse_critique(critique.text, response) == critique.findings
        assert set(critique.text.split()) <= set(WORDS)
        score = quality(truth, kind, prompt, response)
        assert (score == 0) == is_perfect(scene, answer, response)
        # every object of the image is named: nothing else can be denied by mistake
        named = {f.claim for f in critique.findings} | {f.correction for f in critique.findings}
        assert {" ".join(o.type) for o in scene.objects} <= named


def test_a_critique_says_what_is_there_at_every_place() -> None:
    rng = random.Random(0)
    for scene in itertools.islice(iter(lambda: draw_scene(rng), None), 100):
        critique = write_critique(scene.truth(), "describe", "", biased_caption(scene, rng)).text
        for item in scene.objects:
            place, color, shape = item.position, item.color, item.shape
            named = rf"{place} \w+ \w+ {color} (yes|no) {shape} (ok|bad|again)"
            pattern = rf"{named}|missing {place} {color} {shape}"
            assert re.search(pattern, critique)


def test_the_request_is_in_the_vocabulary() -> None:
    assert set(CRITIQUE_REQUEST.split()) <= set(WORDS)
