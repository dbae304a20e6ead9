"""AMBER: counts of a description, its rates, and the yes/no half, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainers.benchmarks.amber import Amber
from trainers.benchmarks.amber_counts import (
    count_description,
    description_rates,
    question_rates,
    yes_no,
)
from trainers.benchmarks.questions import Answer, Options
from trainers.data.errors import UserError

ASSOCIATIONS = {
    "road": ["street", "ground"],
    "dog": ["puppy"],
    "cloud": ["sky"],
    "person": ["man"],
    "light": [],
    "ship": ["boat"],
    "horse": ["pony"],
}


def counts(nouns, truth, hallu=(), similar=lambda a, b: a == b):
    found = count_description(
        nouns, truth, hallu, associations=ASSOCIATIONS, safe={"light"}, similar=similar
    )
    return (found.nouns, found.hallucinated, found.covered, found.fallen_for)


@pytest.mark.parametrize(
    ("nouns", "truth", "hallu", "expected"),
    [
        (["dog", "road"], ["dog", "road"], [], (2, 0, 2, 0)),
        (["puppy", "street"], ["dog", "road"], [], (2, 0, 2, 0)),  # associates cover
        (["dog", "dog", "puppy"], ["dog"], [], (3, 0, 1, 0)),  # thrice named, once covered
        (["idea", "table"], ["dog"], [], (0, 0, 0, 0)),  # not in AMBER's vocabulary
        (["light", "dog"], ["dog"], [], (2, 0, 1, 0)),  # safe: in the denominator, never wrong
        (["light"], ["light"], [], (1, 0, 0, 0)),  # and it covers nothing either
        (["cloud"], ["dog"], ["cloud"], (1, 1, 0, 1)),
        (["sky"], ["dog"], ["cloud"], (1, 1, 0, 1)),  # a target's associate
        (["person"], ["dog"], ["cloud"], (1, 1, 0, 0)),
        (["ship"], ["ship", "ship"], [], (1, 0, 1, 0)),  # the second of two is never covered
        ([], ["dog"], ["cloud"], (0, 0, 0, 0)),  # an empty answer
    ],
)
def test_counts(nouns, truth, hallu, expected):
    assert counts(nouns, truth, hallu) == expected


def test_similar_nouns_cover_and_fall():
    """horse ~ dog (true): covered, no hallucination, but its own target is marked as well."""

    def close(a: str, b: str) -> bool:
        return {a, b} in ({"horse", "dog"}, {"horse", "pony"})

    assert counts(["horse"], ["dog"], ["horse"], close) == (1, 0, 1, 1)
    assert counts(["horse"], ["road"], ["horse"], close) == (1, 1, 0, 1)


def test_rates_by_hand():
    described = [
        count_description(
            nouns, truth, hallu, associations=ASSOCIATIONS, safe={"light"}, similar=str.__eq__
        )
        for nouns, truth, hallu in (
            (["dog", "cloud", "light"], ["dog", "road"], ["cloud", "ship"]),
            ([], ["person"], []),
        )
    ]
    # 1 of 3 nouns, 1 of 3 objects, 1 of 2 descriptions, 1 of 2 targets; denominators + 0.001
    assert description_rates(described) == {"chair": 33.3, "cover": 33.3, "hal": 50.0, "cog": 50.0}


def test_an_empty_answer_alone_divides_by_a_thousandth():
    described = [
        count_description(
            [], ["dog"], [], associations=ASSOCIATIONS, safe=set(), similar=str.__eq__
        )
    ]
    # hal = round(100 - 1 / 1.001 * 100, 1)
    assert description_rates(described) == {"chair": 0.0, "cover": 0.0, "hal": 0.1, "cog": 0.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "Yes"), ("yes, there is", "Yes"), ("No", "No"), ("", "No"), ("maybe", "No"),
        ("No, not yesterday", "Yes"),  # the letters count, as in mmrlhf-eval
        ("YES", "No"),
    ],
)  # fmt: skip
def test_yes_no(text, expected):
    assert yes_no(text) == expected


def test_question_rates_by_hand():
    items = [("no", "No"), ("no", "Yes"), ("yes", "No"), ("yes", "Yes"), ("no", "No")]
    # right 3 of 5; No said 3 times, 2 right; no true 3 times, 2 found
    assert question_rates(items) == {
        "accuracy": 60.0,
        "precision": 66.6,  # 2 / 3.001
        "recall": 66.6,
        "f1": 66.6,  # 2 * .666^2 / (1.332 + 1e-4)
    }


def test_nothing_answered_no():
    values = question_rates([("no", "Yes"), ("yes", "Yes")])
    assert values == {"accuracy": 50.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_three_counters_start_at_three_thousandths():
    assert question_rates([("no", "No")], counters=3)["accuracy"] == 99.7
    assert question_rates([("no", "No")])["accuracy"] == 99.9


def test_existence_has_the_larger_epsilon():
    perfect = [("no", "No")] * 1000
    assert question_rates(perfect)["f1"] == 100.0  # 2 / 2.0001
    assert question_rates(perfect, epsilon=0.1)["f1"] == 95.2  # 2 / 2.1


def write(folder: Path) -> None:
    rows = [
        ("generative", ["dog", "road"], ["cloud"], "Describe this image."),
        ("discriminative-hallucination", "no", None, "Is there a ship?"),
        ("discriminative-attribute-state", "yes", None, "Is the dog sitting?"),
        ("discriminative-attribute-number", "no", None, "Are there two dogs?"),
        ("relation", "yes", None, "Is the dog on the road?"),
        ("discriminative-relation", "no", None, "Is there contact?"),
    ]
    (folder / "query").mkdir(parents=True)
    (folder / "image").mkdir()
    annotations, queries = [], []
    for number, (kind, truth, hallu, text) in enumerate(rows, 1):
        row = {"id": number, "type": kind, "truth": truth}
        annotations.append(row if hallu is None else row | {"hallu": hallu})
        queries.append({"id": number, "image": f"AMBER_{number}.jpg", "query": text})
        (folder / f"image/AMBER_{number}.jpg").touch()
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "query/query_all.json").write_text(json.dumps(queries))
    (folder / "query/query_discriminative.json").write_text(json.dumps(queries[1:]))
    (folder / "query/query_generative.json").write_text(json.dumps(queries[:1]))
    (folder / "relation.json").write_text(json.dumps(ASSOCIATIONS))
    (folder / "safe_words.txt").write_text("light\nsign")


def said(*texts: str) -> list[Answer]:
    return [Answer(text=text, num_tokens=3) for text in texts]


def test_all_parts_together(tmp_path):
    write(tmp_path)
    amber = Amber(tmp_path, Options(words="own"))
    answers = said("Two dogs, a pony and clouds.", "No.", "yes", "Yes", "", "no")
    values = amber.metrics(answers)
    # kept: dog, pony, cloud; of 2 objects dog; pony and cloud hallucinated; cloud is a target
    assert (values["chair"], values["cover"], values["hal"], values["cog"]) == (
        66.6, 50.0, 100.0, 99.9,
    )  # fmt: skip
    # truth n y n y n, said N Y Y N N
    assert values["accuracy"] == 60.0
    assert values["precision"] == 66.6 and values["recall"] == 66.6
    assert values["unclear"] == 20.0
    assert values["existence_accuracy"] == 99.9 and values["relation_accuracy"] == 50.0
    assert values["attribute_accuracy"] == 49.9  # 1 / 2.003: three counters
    assert values["number_recall"] == 0.0
    assert "action_accuracy" not in values  # none was asked
    assert values["amber_score"] == pytest.approx((100 - 66.6 + values["f1"]) / 2)
    (file,) = amber.answer_files(answers).values()
    assert json.loads(file)[1:] == [
        {"id": number, "response": word}
        for number, word in enumerate(["No", "Yes", "Yes", "No", "No"], 2)
    ]


def test_the_yes_no_half_needs_no_language_tools(tmp_path):
    write(tmp_path)
    amber = Amber(tmp_path, Options(split="discriminative"))
    assert {q.part for q in amber.questions} == {"existence", "attribute", "relation"}
    values = amber.metrics(said("No", "Yes", "No", "Yes", "No"))
    assert values["accuracy"] == 100.0 and "chair" not in values and "amber_score" not in values


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(UserError, match=r"query_all.json: no such file; it comes from github.com/"):
        Amber(tmp_path, Options())
    write(tmp_path)
    with pytest.raises(UserError, match="--split rare: AMBER has generative"):
        Amber(tmp_path, Options(split="rare"))
    (tmp_path / "relation.json").write_text(json.dumps({"dog": []}))
    with pytest.raises(UserError, match=r"annotation 1 has .road., which relation\.json lacks"):
        Amber(tmp_path, Options(words="own"))
