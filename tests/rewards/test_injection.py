"""Injected errors: every injected caption is wrong, and what changes nothing is an error."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.critique import quality
from rewards.injection import InjectionError, inject_drawn, injection_request, read_injection
from trainers.data.scenes import caption, draw_exists, draw_question, draw_scene, parse_mentions


@given(seed=st.integers(0, 2**32))
def test_an_injected_caption_is_never_true(seed):
    rng = random.Random(seed)
    scene = draw_scene(rng)
    text = inject_drawn(caption(scene), rng)
    assert text != caption(scene)
    assert quality(scene.truth(), "describe", "describe the image .", text) < 0
    assert all(mention.position for mention in parse_mentions(text))


@given(seed=st.integers(0, 2**32))
def test_an_injected_answer_is_never_right(seed):
    rng = random.Random(seed)
    scene = draw_scene(rng)
    for draw in (draw_exists, draw_question):
        _, answer = draw(scene, rng)
        assert inject_drawn(answer, rng) != answer


def test_the_usual_companion_by_hand():
    # companion(red circle) = blue square; one object, so one error of four kinds
    seen = {inject_drawn("top-left red circle .", random.Random(seed)) for seed in range(200)}
    assert "top-left blue square ." in seen  # object
    assert "top-left blue circle ." in seen  # color
    assert "top-right red circle ." in seen  # place
    assert "top-left red circle . bottom-left blue square ." in seen  # companion
    assert len(seen) == 2 + 3 + 3
    assert inject_drawn("yes", random.Random(0)) == "no"
    assert inject_drawn("red", random.Random(0)) == "blue"
    assert {inject_drawn("two", random.Random(seed)) for seed in range(20)} == {"one", "three"}
    assert {inject_drawn("zero", random.Random(seed)) for seed in range(20)} == {"one"}


@pytest.mark.parametrize("text", ["", "a dog on a sofa", "reddish circle"])
def test_what_is_not_of_this_world_is_a_failure(text):
    with pytest.raises(InjectionError, match="no object and no answer"):
        inject_drawn(text, random.Random(0))


def test_the_template_follows_the_length_of_the_answer():
    assert "Imagine a similar but different image" in injection_request("How many?", "two")
    long = injection_request("Describe it.", "There is a red bus " * 4)
    assert "add or remove objects" in long
    assert "Describe it." in long and "There is a red bus" in long


def test_a_reply_is_read_strictly():
    assert read_injection("Rewritten: a blue bus.", "a red bus.") == "a blue bus."
    assert read_injection('Sure.\n  rewritten: "a blue bus."', "a red bus.") == "a blue bus."
    for reply, reason in {
        "a blue bus.": "0 lines",
        "Rewritten: one\nRewritten: two": "2 lines",
        "Rewritten:  ": "empty",
        "Rewritten: A  red bus.": "nothing changed",
    }.items():
        with pytest.raises(InjectionError, match=reason):
            read_injection(reply, "a red bus.")
