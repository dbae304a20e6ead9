"""Splitter and converter that are models: what they write is parsed strictly."""

from __future__ import annotations

import pytest

from rewards.asking import Failed
from rewards.base import known_item
from rewards.model_claims import MAX_WORDS, SUFFIX, model_split, parse_facts, parse_question
from trainers.data.records import Sample, Turn


def item(text: str):
    sample = Sample(
        id="s", prompt=(Turn(role="user", text="Describe it.", num_images=1),), images=("h",)
    )
    return known_item(sample, text)


def test_facts_are_bullets():
    text = "### Facts:\n- A dog is on the grass.\n\n* The dog is brown.\n"
    assert parse_facts(text) == ("A dog is on the grass.", "The dog is brown.")


@pytest.mark.parametrize("text", ["", "### Facts:\n", "- A dog.\nand a cat", "I see no facts."])
def test_anything_else_is_a_failure(text):
    assert isinstance(parse_facts(text), Failed)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("Is the dog brown?", True),
        ("  Is the dog brown?\n", True),
        ("The dog is brown.", False),
        ("Is it? Is it?", False),
        ("Question:\nIs it?", False),
        ("", False),
    ],
)
def test_a_question_is_one_line_with_one_mark(text, good):
    assert isinstance(parse_question(text), str) == good


def test_claims_carry_question_and_place():
    def splitter(prompts):
        assert "A brown dog." in prompts[0].turns[0].text and not prompts[0].images
        return ["- a brown dog\n- it sleeps", "no bullets", Failed("too long")]

    def converter(prompts):
        names = [prompt.turns[0].text.rpartition("Statement: ")[2] for prompt in prompts]
        assert names == ["a brown dog", "it sleeps"]
        return ["Is there a brown dog?", "Does it sleep?"]

    found, second, third = model_split(splitter, converter)(
        [item("A brown dog."), item("b"), item("c")]
    )
    assert [claim.question for claim in found] == [
        f"Is there a brown dog? {SUFFIX}",
        f"Does it sleep? {SUFFIX}",
    ]
    assert [claim.span for claim in found] == [(0, 11), None]
    assert isinstance(second, Failed) and third == Failed("too long")


def test_a_question_that_does_not_parse_fails_the_answer():
    split = model_split(lambda prompts: ["- a\n- b"], lambda prompts: ["Is a?", "b."])
    (found,) = split([item("a b")])
    assert isinstance(found, Failed) and "'b.'" in found.reason


def test_only_the_start_of_a_long_answer_is_read():
    seen = []

    def splitter(prompts):
        seen.extend(prompts)
        return ["- a"]

    model_split(splitter, lambda prompts: ["Is a?"])([item("word " * 1000)])
    assert seen[0].turns[0].text.count("word") == MAX_WORDS
