"""Tokenizer and singulariser of our own; the original tools are asked for by name."""

from __future__ import annotations

import sys

import pytest

from trainers.benchmarks.words import (
    choose,
    own_nouns,
    own_singular,
    own_tokens,
    own_words,
    pattern_words,
    tagged_nouns,
    wordnet_words,
)
from trainers.data.errors import UserError


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("dogs", "dog"), ("boxes", "box"), ("benches", "bench"), ("cherries", "cherry"),
        ("ties", "tie"), ("people", "person"), ("knives", "knife"), ("buses", "bus"),
        ("bus", "bus"), ("glass", "glass"), ("glasses", "glasses"), ("scissors", "scissors"),
        ("sheep", "sheep"), ("potatoes", "potato"), ("cross", "cross"), ("crosses", "cross"),
        ("dog", "dog"), ("is", "is"), ("as", "as"), ("s", "s"), ("", ""),
    ],
)  # fmt: skip
def test_own_singular(plural, singular):
    assert own_singular(plural) == singular


def test_own_tokens_part_signs_from_words():
    assert own_tokens("A top-left dog's bowl, (red).") == [
        "A", "top-left", "dog's", "bowl", ",", "(", "red", ")", ".",
    ]  # fmt: skip
    assert own_tokens("") == []


def test_own_tools_say_that_they_are_not_comparable():
    assert "NOT comparable" in own_words().note
    nouns = own_nouns()
    assert "NOT comparable" in nouns.note
    assert nouns.lemmas("Two Dogs.") == ["two", "dog", "."]
    assert nouns.similar("dog", "dog") and not nouns.similar("dog", "puppy")


@pytest.mark.parametrize("tools", [wordnet_words, pattern_words, tagged_nouns])
def test_missing_packages_are_named_and_not_replaced(tools, monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(UserError, match=r"need NLTK: pip install .* --words own"):
        tools()


def test_unknown_tools_are_refused():
    with pytest.raises(UserError, match="--words wordnet: amber has original, own"):
        choose("wordnet", {"original": tagged_nouns, "own": own_nouns}, "amber")
