"""Factual text before the evaluator's request, in training and in judging alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.reward import evaluator_turns
from actors.reward_training import pair_rows
from cluster.reward import require_facts
from rewards.facts import has_facts, request_with_facts
from trainers.data.errors import UserError
from trainers.data.preferences import ReasonedPair
from trainers.data.records import Sample, Turn


def sample(**truth) -> Sample:
    prompt = (Turn(role="user", text="What is it?", num_images=1),)
    return Sample(id="s", prompt=prompt, images=("a" * 64,), truth=truth or None)


def test_facts_stand_between_the_answer_and_the_request():
    """Two captions, a line each, under the heading; the policy's prompt stays as it is."""
    known = sample(captions=["A red circle.", "A circle on grey."])
    expected = (
        "What is known of the image:\n- A red circle.\n- A circle on grey.\n\ncritique the answer ."
    )
    assert request_with_facts("critique the answer .", known) == expected
    turns = evaluator_turns("critique the answer .", known, "A square.", facts=True)
    assert [turn.text for turn in turns] == ["What is it?", "A square.", expected]
    assert known.prompt[0].text == "What is it?"
    plain = evaluator_turns("critique the answer .", known, "A square.")
    assert plain[-1].text == "critique the answer ."
    assert request_with_facts("r", sample(facts="One.")) == "What is known of the image:\nOne.\n\nr"


def test_training_has_the_same_prompt():
    known = sample(facts="A red circle.")
    pair = ReasonedPair(group="g", category="", sample=known, chosen="a", rejected="b")
    for row, text in zip(pair_rows(pair, "r", facts=True), ("a", "b"), strict=True):
        assert row.prompt == evaluator_turns("r", known, text, facts=True)
    assert pair_rows(pair, "r")[0].prompt == evaluator_turns("r", known, "a")


def test_a_file_without_facts_is_refused():
    known, unknown = sample(facts="One."), sample(answer="no")
    assert has_facts(known) and not has_facts(unknown)
    pairs = [
        ReasonedPair(group="g", category="", sample=one, chosen="a", rejected="b")
        for one in (known, unknown)
    ]
    require_facts(Path("pairs.jsonl"), pairs[:1])
    with pytest.raises(UserError, match=r"1 of 2 rows have neither truth.facts nor"):
        require_facts(Path("pairs.jsonl"), pairs)
