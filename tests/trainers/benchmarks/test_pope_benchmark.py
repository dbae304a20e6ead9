"""POPE's files and its reading of answers, line by line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.benchmarks.pope import Pope, original_answer
from trainers.benchmarks.questions import Answer, Options
from trainers.data.errors import UserError
from trainers.evaluation import pope_answer, pope_metrics


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No, there isn't.", "no"),
        ("Yes.", "yes"),
        ("", "yes"),  # nothing said counts as yes
        ("There is not.", "no"),
        ("There is no dog in the image.", "no"),
        ("Yes. There is no cat, though.", "yes"),  # the first sentence only
        ("NO", "yes"),  # the original knows No and no
        ("no!", "yes"),  # punctuation other than commas stays on the word
        ("No,there is none", "yes"),  # a deleted comma glues: Nothere
        ("No\nThere is none", "yes"),  # split at spaces only
        (" no", "no"),
        ("It isn't there", "yes"),
        (". no", "yes"),
    ],
)
def test_reads_answers_as_the_original(text, expected):
    assert original_answer(text) == expected


@given(st.lists(st.sampled_from(["yes", "no", "not", "there", "is", "a", "dog"])))
def test_agrees_with_the_drawn_worlds_reading_on_plain_words(words):
    text = " ".join(words)
    assert original_answer(text) == pope_answer(text)


def write(folder: Path, split: str, rows: list[tuple[str, str]], name: str = "coco_pope") -> None:
    lines = [
        {"question_id": i, "image": f"{i}.jpg", "text": text, "label": label}
        for i, (text, label) in enumerate(rows, 1)
    ]
    for line in lines:
        (folder / str(line["image"])).touch()
    (folder / f"{name}_{split}.json").write_text("".join(json.dumps(x) + "\n" for x in lines))


ROWS = [("Is there a cat?", "yes"), ("Is there a dog?", "no"), ("Is there a car?", "yes")]


def said(*texts: str) -> list[Answer]:
    return [Answer(text=text, num_tokens=2) for text in texts]


def test_metrics_by_hand(tmp_path):
    write(tmp_path, "popular", [*ROWS, ("Is there a bus?", "no")])
    pope = Pope(tmp_path, Options(split="popular"))
    metrics = pope.metrics(said("Yes", "", "No, none.", "no"))
    # labels y n y n, said y y n n: TP 1, FP 1, FN 1, TN 1
    assert metrics["pope_popular_accuracy"] == metrics["pope_accuracy"] == 0.5
    assert metrics["pope_precision"] == metrics["pope_recall"] == metrics["pope_f1"] == 0.5
    assert metrics["pope_yes_ratio"] == 0.5
    assert metrics["pope_unclear"] == 0.25  # the empty answer
    assert metrics["pope_case_differs"] == 0.0
    assert Pope(tmp_path, Options(split="popular")).metrics(said("NO", *["Yes"] * 3))[
        "pope_case_differs"
    ] == pytest.approx(0.25)


def test_equals_the_drawn_worlds_metrics_on_plain_answers(tmp_path):
    for split in ("random", "popular", "adversarial"):
        write(tmp_path, split, ROWS)
    pope = Pope(tmp_path, Options())
    texts = ["yes", "no", "no", "yes", "yes", "yes", "no", "no", "yes"]
    mine = pope.metrics(said(*texts))
    items = [(q.part, str(q.label), t) for q, t in zip(pope.questions, texts, strict=True)]
    for name, value in pope_metrics(items).items():
        assert mine[name] == pytest.approx(value, nan_ok=True), name


def test_nothing_answered_yes_has_no_precision(tmp_path):
    write(tmp_path, "random", ROWS)
    metrics = Pope(tmp_path, Options(split="random")).metrics(said("no", "no", "no"))
    assert math.isnan(metrics["pope_precision"])
    assert metrics["pope_recall"] == 0.0


def test_limit_counts_each_split(tmp_path):
    for split in ("random", "popular", "adversarial"):
        write(tmp_path, split, ROWS)
    pope = Pope(tmp_path, Options(limit=2))
    assert [q.id for q in pope.questions] == [
        "random/1", "random/2", "popular/1", "popular/2", "adversarial/1", "adversarial/2",
    ]  # fmt: skip
    files = pope.answer_files(said(*"abcdef"))
    assert sorted(files) == [f"pope_{s}_answers.json" for s in ("adversarial", "popular", "random")]
    first = [json.loads(line) for line in files["pope_popular_answers.json"].splitlines()]
    assert first == [
        {"question": "Is there a cat?", "answer": "c"},
        {"question": "Is there a dog?", "answer": "d"},
    ]


def refused(*arguments) -> str:
    with pytest.raises(UserError) as error:
        Pope(*arguments)
    return str(error.value)


def test_what_is_missing_is_named(tmp_path):
    assert "coco_pope_random.json: no such file; it comes from github.com/RUCAIBox/POPE" in refused(
        tmp_path, Options()
    )
    assert "no such folder" in refused(tmp_path / "none", Options())
    assert "--split rare: POPE has random, popular, adversarial" in refused(
        tmp_path, Options(split="rare")
    )
    write(tmp_path, "random", ROWS)
    (tmp_path / "2.jpg").unlink()
    assert "2.jpg: no such file; it comes from COCO 2014" in refused(
        tmp_path, Options(split="random")
    )
    write(tmp_path, "random", ROWS, name="gqa_pope_seem")
    assert "are all POPE's random split" in refused(tmp_path, Options(split="random"))


def test_broken_rows_are_named(tmp_path):
    write(tmp_path, "random", [("Is there a cat?", "maybe")])
    assert "row 1: label 'maybe' is neither" in refused(tmp_path, Options(split="random"))
    (tmp_path / "coco_pope_random.json").write_text('{"image": "1.jpg"}\n')
    assert "row 1: no 'text'; the row has image" in refused(tmp_path, Options(split="random"))
    (tmp_path / "coco_pope_random.json").write_text("[1]\n")
    assert "line 1 is a list" in refused(tmp_path, Options(split="random"))
