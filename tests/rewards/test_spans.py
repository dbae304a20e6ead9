"""Where claims stand in a response."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.critique import write_critique
from rewards.spans import locate, with_spans
from trainers.data.records import Critique, Finding


@pytest.mark.parametrize(
    ("claim", "text", "span"),
    [
        ("red", "bored red", (6, 9)),
        ("Dog", "the dog.", (4, 7)),
        ("cat", "the dog", None),
        ("", "the dog", None),
        ("dog", "hotdog dogs", None),
        (".", "a .", (2, 3)),
    ],
)
def test_whole_words_in_any_case(claim, text, span):
    assert locate(claim, text) == span


def test_the_nth_finding_gets_the_nth_mention():
    text = "top-left red circle . top-right red circle ."
    truth = {"objects": [["red", "circle", "top-left"]], "answer": None}
    critique = with_spans(write_critique(truth, "describe", "describe the image .", text), text)
    good, bad = critique.findings
    assert (good.verdict, bad.verdict) == ("ok", "bad")
    assert (good.span, bad.span) == ((9, 19), (32, 42))


def test_missing_things_and_objects_listed_have_no_place():
    critique = Critique(
        text="",
        findings=(Finding(claim="red circle", verdict="missing"), Finding(claim="x", verdict="ok")),
    )
    assert with_spans(critique, "red circle") == critique


def test_a_span_that_is_there_stays():
    finding = Finding(claim="red", verdict="bad", span=(4, 7))
    assert with_spans(Critique(text="", findings=(finding,)), "red red").findings == (finding,)


@given(st.text(max_size=20), st.text(max_size=5))
def test_a_span_holds_the_claim(text, claim):
    span = locate(claim, text)
    if span is not None:
        assert text[slice(*span)].lower() == claim.strip().lower()
