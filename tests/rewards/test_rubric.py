"""The rubric judge: files, the strict parser, both orders."""

from __future__ import annotations

import pytest

from rewards.asking import Failed
from rewards.base import known_item
from rewards.rubric import (
    FOLDER,
    RubricJudge,
    factual_text,
    load_rubric,
    parse_better,
    parse_rating,
)
from trainers.data.errors import UserError
from trainers.data.records import Sample, Turn

TRUTH = {"objects": [["red", "circle", "top-left"]], "answer": None}


def item(text: str, id: str = "s", truth=None):
    prompt = (Turn(role="user", text="What is there?", num_images=1),)
    return known_item(Sample(id=id, prompt=prompt, images=("h",), truth=truth), text)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.md")), ids=lambda file: file.stem)
def test_every_rubric_of_the_package_loads(file):
    rubric = load_rubric(file.stem)
    assert "Scale:" not in rubric.prompt
    assert ("Rating:" in rubric.prompt) != ("Better:" in rubric.prompt)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Scale: 0 to 6\n{question}", "needs {question} and either"),
        ("Scale: 0 to 6\n{question}{response}{first}{second}", "needs {question} and either"),
        ("{question}{response}", "one line `Scale: LOW to HIGH`"),
        ("Scale: 6 to 0\n{question}{response}", "LOW below HIGH"),
        ("Scale: 0 to 6\nScale: 0 to 5\n{question}{response}", "one line"),
    ],
)
def test_a_rubric_that_lacks_something_is_refused(text, part, tmp_path):
    file = tmp_path / "r.md"
    file.write_text(text)
    with pytest.raises(UserError, match=part):
        load_rubric(str(file))


def test_an_unknown_rubric_names_the_known_ones():
    with pytest.raises(UserError, match="comparison, faithfulness, helpfulness"):
        load_rubric("helpfulnes")


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Fine.\nRating: 5", 5.0),
        ("Rating:0", 0.0),
        ("Rating: 4.5.", 4.5),
        ("Rating: 5\nRating: 5", None),
        ("Rating: five", None),
        ("rating: 5", None),
        ("Rating: 7", None),
        ("Rating: -1", None),
        ("", None),
    ],
)
def test_exactly_one_rating_on_the_scale(text, rating):
    parsed = parse_rating(text, load_rubric("helpfulness"))
    assert parsed == rating if rating is not None else isinstance(parsed, Failed)


def test_verdicts_on_two_answers():
    assert [parse_better(f"Better: {w}") for w in ("first", "SECOND", "tie")] == [1.0, 0.0, 0.5]
    assert isinstance(parse_better("Better: first\nBetter: second"), Failed)
    assert isinstance(parse_better("the first"), Failed)


def test_ratings_are_scores_and_what_does_not_parse_is_a_failure():
    seen = []

    def complete(prompts):
        seen.extend(prompts)
        return ["Good. Rating: 6", "hm", Failed("status 500")]

    items = [item("a dog"), item("{question}"), item("c")]
    judged = RubricJudge(load_rubric("helpfulness"), complete).judge(items)
    assert [j.score for j in judged] == [6.0, None, None]
    assert judged[0].critique.text == "Good. Rating: 6"
    assert judged[2].failure == "rubric: status 500" and judged[1].failure.startswith("rubric: 0")
    assert seen[0].images == ("h",) and "a dog" in seen[0].turns[0].text
    assert "What is there?" in seen[0].turns[0].text
    assert "Answer: {question}" in seen[1].turns[0].text  # what an answer says is not filled in


def test_facts_stand_in_the_prompt_where_the_rubric_asks_for_them():
    rubric = load_rubric("faithfulness")
    prompts = []

    def complete(given):
        prompts.extend(given)
        return ["Rating: 1"] * len(given)

    known, unknown = RubricJudge(rubric, complete).judge([item("x", truth=TRUTH), item("x")])
    assert known.score == 1.0 and len(prompts) == 1
    assert "top-left red circle ." in prompts[0].turns[0].text
    assert unknown.score is None and "truth has none" in unknown.failure
    assert factual_text(item("x", truth={"captions": ["a", "b"]}).sample) == "- a\n- b"


def compare(order, items):
    """Judges with `order(first, second)` -> verdict word."""
    rubric = load_rubric("comparison")

    def complete(prompts):
        answers = []
        for prompt in prompts:
            text = prompt.turns[0].text
            first = text.split("First answer: ")[1].split("\n")[0]
            second = text.split("Second answer: ")[1].split("\n")[0]
            answers.append(f"Better: {order(first, second)}")
        return answers

    return RubricJudge(rubric, complete).judge(items)


def test_a_judge_that_looks_at_the_answers_ranks_them():
    longer = lambda a, b: "first" if len(a) > len(b) else "second" if len(b) > len(a) else "tie"  # noqa: E731
    judged = compare(longer, [item("a"), item("aaa"), item("aa"), item("z", id="other")])
    assert [j.score for j in judged[:3]] == [0.0, 1.0, 0.5]
    assert judged[3].score is None and "no other answer" in judged[3].failure
    assert all(j.components == {"order_decided": 0.0} for j in judged[:3])


def test_a_judge_that_looks_at_the_place_decides_nothing():
    judged = compare(lambda a, b: "first", [item("a"), item("aaa"), item("aa")])
    assert [j.score for j in judged] == [0.5, 0.5, 0.5]
    assert all(j.components == {"order_decided": 1.0} for j in judged)
