"""CHAIR and Object HalBench: which words are objects, which objects are there, and the rates."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import pytest

from trainers.benchmarks.chair import PROMPT, Chair
from trainers.benchmarks.coco import Vocabulary, read_synonyms, special_pairs
from trainers.benchmarks.mentions import count, rates
from trainers.benchmarks.object_halbench import RLAIF_V, ObjectHalBench
from trainers.benchmarks.questions import Answer, Options
from trainers.benchmarks.words import own_words
from trainers.data.errors import UserError

SYNONYMS = """person, girl, man, baby, people
dog, puppy
train, locomotive
tie, bow
wine glass
toilet, potty
chair, seat
motorcycle, scooter,  motor bike
hot dog
"""
OWN = Options(words="own")


def vocabulary(tmp_path: Path, *, strip: bool = True) -> Vocabulary:
    path = tmp_path / "synonyms.txt"
    path.write_text(SYNONYMS)
    names = read_synonyms(path, strip=strip)
    pairs = {name: name for name in ("hot dog", "wine glass", "motor bike", "home plate")}
    return Vocabulary(class_of=names, pairs=pairs | special_pairs(), words=own_words())


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("A man and two puppies.", ["person", "dog"]),
        ("Dogs, DOG; a dog", ["dog", "dog", "dog"]),  # mentions, not types
        ("a baby dog", ["dog"]),  # not a person and a dog
        ("an adult dog with a baby", ["dog", "person"]),
        ("a passenger train", ["train"]),
        ("a bow tie", ["tie"]),
        ("wine glasses", []),  # our singulariser leaves `glasses`; pattern makes `glas` of `glass`
        ("a wine glass", ["wine glass"]),
        ("the seat of the toilet", ["toilet"]),
        ("a toilet seat", ["toilet"]),
        ("a seat", ["chair"]),
        ("a hot dog on the home plate", ["hot dog"]),
        ("a motor bike", ["motorcycle"]),
        ("nothing at all", []),
        ("", []),
    ],
)
def test_mentions(text, classes, tmp_path):
    assert [name for _, name in vocabulary(tmp_path).mentions(text)] == classes


def test_chair_keeps_the_spaces_of_its_synonyms_file(tmp_path):
    """` motor bike` in the file never matches `motor bike`; RLAIF-V's script strips it."""
    assert vocabulary(tmp_path, strip=False).mentions("a motor bike") == []


def test_rates_by_hand():
    counts = [
        count(["dog", "cat", "cat"], {"dog", "person"}),  # 2 of 3 wrong, 1 of 2 found
        count([], {"dog"}),  # says nothing
        count(["dog", "dog"], {"dog"}),  # twice the same is not wrong
    ]
    values = rates(counts)
    assert values["chair_i"] == pytest.approx(2 / 5)
    assert values["chair_s"] == pytest.approx(1 / 3)  # over all captions
    assert values["chair_s_refine"] == pytest.approx(1 / 2)  # over those that name an object
    assert values["recall"] == pytest.approx(2 / 4)
    assert values["mentions"] == pytest.approx(5 / 3)


def test_captions_that_name_nothing_have_no_rate():
    values = rates([count([], {"dog"}), count([], {"cat"})])
    assert math.isnan(values["chair_i"]) and math.isnan(values["chair_s_refine"])
    assert values["chair_s"] == 0.0


def coco(folder: Path, *, split: bool = False) -> None:
    """Two annotated images and one without an instance, in COCO's own format."""
    instances = {
        "images": [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in (7, 8, 9)],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"image_id": 7, "category_id": 18},
            {"image_id": 7, "category_id": 18},
            {"image_id": 8, "category_id": 1},
        ],
    }
    captions = {
        "annotations": [
            {"image_id": 7, "caption": "A dog beside a train."},
            {"image_id": 8, "caption": "Somebody."},
            {"image_id": 9, "caption": "A dog."},
        ]
    }
    empty = {"images": [], "categories": [], "annotations": []}
    if split:
        (folder / "annotations").mkdir()
        for name, content in (("instances", instances), ("captions", captions)):
            (folder / f"annotations/{name}_val2014.json").write_text(json.dumps(content))
            (folder / f"annotations/{name}_train2014.json").write_text(json.dumps(empty))
    else:
        (folder / "instances_all2014.json").write_text(json.dumps(instances))
        (folder / "captions_all2014.json").write_text(json.dumps(captions))
    (folder / "val2014").mkdir()
    for image in instances["images"]:
        (folder / "val2014" / str(image["file_name"])).touch()
    (folder / "synonyms.txt").write_text(SYNONYMS)
    (folder / "synonyms_refine.txt").write_text(SYNONYMS)


def said(*texts: str) -> list[Answer]:
    return [Answer(text=text, num_tokens=5) for text in texts]


@pytest.mark.parametrize("split", [False, True])
def test_chair_on_coco_files(split, tmp_path):
    coco(tmp_path, split=split)
    (tmp_path / "image_ids.txt").write_text("7\nCOCO_val2014_000000000008.jpg\n")
    chair = Chair(tmp_path, OWN)
    assert [q.truth["classes"] for q in chair.questions] == [["dog", "train"], ["person"]]
    assert {q.text for q in chair.questions} == {PROMPT}
    values = chair.metrics(said("A dog, a train and a man.", "A puppy"))
    assert values["chair_i"] == pytest.approx(2 / 4) and values["chair_s"] == 1.0
    assert values["recall"] == pytest.approx(2 / 3)
    files = chair.answer_files(said("one", "two"))
    content = json.loads(files["chair_captions.json"])
    assert content["imgToEval"]["8"]["caption"] == "two"
    assert set(content["overall"]) <= set(content["imgToEval"]["7"])
    assert files["image_ids.txt"] == "7\n8\n"


def test_chair_draws_from_the_annotated_images(tmp_path):
    coco(tmp_path)
    chair = Chair(tmp_path, OWN)
    assert sorted(q.truth["image_id"] for q in chair.questions) == [7, 8]
    assert any("2 drawn from 2 annotated ones (seed 0)" in note for note in chair.notes)
    assert any("NOT comparable" in note for note in chair.notes)


def test_chair_names_what_is_wrong(tmp_path):
    coco(tmp_path)
    (tmp_path / "image_ids.txt").write_text("7 10")
    with pytest.raises(UserError, match="entry 2: '10' is no image of COCO 2014"):
        Chair(tmp_path, OWN)
    (tmp_path / "image_ids.txt").unlink()
    (tmp_path / "captions_all2014.json").unlink()
    with pytest.raises(UserError, match=r"captions_val2014.json: no such file; .*cocodataset.org"):
        Chair(tmp_path, OWN)
    (tmp_path / "synonyms.txt").write_text("dog, puppy\n")
    with pytest.raises(UserError, match="COCO class 'person' is not in the synonyms file"):
        Chair(tmp_path, OWN)


def test_object_halbench_reads_objects_from_its_rows(tmp_path):
    coco(tmp_path)
    rows = [
        {"image": "COCO_val2014_000000000007.jpg", "question": "Describe it.", "objects": ["dog"]},
        {"image": "COCO_val2014_000000000008.jpg", "question": "What is it?", "objects": []},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "hallucination_coco.jsonl").write_text(text)
    bench = ObjectHalBench(tmp_path, OWN)
    values = bench.metrics(said("A dog and a hot dog.", "nothing"))
    # `hot dog` is one name, and is not there: 1 of 2 mentions, 1 of 2 answers, 1 of 1 with objects
    assert (values["chair_i"], values["chair_s"], values["chair_s_refine"]) == (0.5, 0.5, 1.0)
    assert values["words"] == pytest.approx((6 + 1) / 2)
    assert any("without GPT's extraction" in note for note in bench.notes)


def test_object_halbench_reads_rlaif_vs_file(tmp_path):
    coco(tmp_path)
    image = base64.b64encode(bytes(range(256))).decode()
    row = {"image": image, "question": "Describe it.", "image_id": "7"}
    (tmp_path / RLAIF_V).write_text(json.dumps(row) + "\n")
    (question,) = ObjectHalBench(tmp_path, OWN).questions
    assert question.truth["classes"] == ["dog", "train"]
    assert question.image == bytes(range(256))
    (tmp_path / RLAIF_V).write_text(json.dumps(row | {"image_id": 99}) + "\n")
    with pytest.raises(UserError, match="row 1: image 99 is not in COCO's annotations"):
        ObjectHalBench(tmp_path, OWN)


def test_object_halbench_reads_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    coco(tmp_path)
    row = {"image": {"bytes": b"png", "path": None}, "question": "Describe it.", "objects": ["dog"]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    (question,) = ObjectHalBench(tmp_path, OWN).questions
    assert question.image == b"png" and question.truth["classes"] == ["dog"]
