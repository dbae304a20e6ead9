"""MM-RLHF's layout: what is read, and which rows are dropped or refused."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.preferences import read_pairs

ROW = {
    "id": "q7",
    "image": "long/1.png",
    "prompt": "What is there?",
    "chosen": "A dog.",
    "rejected": "A cat.",
    "chosen_reason": "Right.",
    "rejected_reason": "There is no cat.",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "long").mkdir()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "long/1.png")
    return tmp_path


def read(folder, *rows):
    (folder / "dpo_pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_pairs(folder / "dpo_pairs.jsonl", ImageStore(folder / "store"))


def test_a_whole_row(folder):
    (pair,), dropped = read(folder, ROW)
    assert not dropped and pair.has_reasons and not pair.is_tie
    assert (pair.group, pair.category, pair.sample.id) == ("q7", "long", "dpo_pairs-1")
    assert (pair.chosen, pair.rejected) == ("A dog.", "A cat.")
    assert pair.rejected_reason == "There is no cat."
    assert pair.sample.prompt[0].num_images == len(pair.sample.images) == 1


def test_pairs_of_one_question_share_an_id(folder):
    pairs, _ = read(folder, ROW, ROW | {"rejected": "A cow.", "is_tie": True})
    assert [pair.group for pair in pairs] == ["q7", "q7"]
    assert [pair.is_tie for pair in pairs] == [False, True]
    assert len({pair.sample.id for pair in pairs}) == 2


@pytest.mark.parametrize("change", [{"chosen_reason": None}, {"rejected_reason": "  "}])
def test_a_missing_reason_is_no_reason(folder, change):
    (pair,), _ = read(folder, ROW | change)
    assert not pair.has_reasons


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"chosen": None}, "no chosen"),
        ({"rejected": ""}, "rejected is empty"),
        ({"prompt": None}, "no prompt"),
        ({"is_tie": "yes"}, "is_tie is 'yes'"),
        ({"chosen_reason": 3}, "chosen_reason is a int"),
        ({"image": None, "video": "v.mp4"}, "a video"),
        ({"image": "../secret.png"}, "leaves"),
        ({"image": "http://x/1.png"}, "is a URL"),
        ({"image": "long/2.png"}, "2.png"),
    ],
)
def test_a_bad_row_is_dropped_with_its_reason_and_too_many_are_refused(folder, change, part):
    pairs, dropped = read(folder, *[ROW] * 19, ROW | change)
    assert len(pairs) == 19 and len(dropped) == 1
    assert dropped[0].startswith("row 20: ") and part in dropped[0]
    with pytest.raises(UserError, match="1 of 2 rows cannot be used"):
        read(folder, ROW, ROW | change)


@pytest.mark.parametrize(
    ("text", "part"), [("", "empty"), ("{", "line 1"), ("[1]", "write one object")]
)
def test_a_bad_file_is_one_line(folder, text, part):
    (folder / "a.jsonl").write_text(text)
    with pytest.raises(UserError, match=part):
        read_pairs(folder / "a.jsonl", ImageStore(folder / "store"))
    with pytest.raises(UserError, match="no such file"):
        read_pairs(folder / "none.jsonl", ImageStore(folder / "store"))
