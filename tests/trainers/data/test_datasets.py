"""Data files of a user: what is read, what is refused, and the line that says so."""

from __future__ import annotations

import datetime as dt
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainers.data.datasets import load_samples
from trainers.data.errors import UserError
from trainers.data.export import export_parquet
from trainers.data.images import ImageStore
from trainers.data.record_file import RecordWriter
from trainers.data.records import (
    Critique,
    PreferencePair,
    Rollout,
    Sample,
    ScoredRollout,
    Turn,
)

GOOD = {"prompt": "Describe.", "images": ["red.png"]}


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "red.png").write_bytes(png("red"))
    (folder / "sub" / "blue.png").write_bytes(png("blue"))
    (folder / "cut.png").write_bytes(png("red")[:-30])
    (tmp_path / "outside.png").write_bytes(png("green"))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", max_pixels=10_000)


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load_one(folder: Path, store: ImageStore, row: dict[str, Any]) -> Sample:
    (sample,) = load_samples(write(folder, row), store).samples
    return sample


def reason(folder: Path, store: ImageStore, row: dict[str, Any]) -> str:
    """Why one bad row among 40 good ones is dropped."""
    data = load_samples(write(folder, *[GOOD] * 20, row, *[GOOD] * 20), store)
    assert len(data.samples) == 40
    (dropped,) = data.dropped
    assert dropped.row == 21
    assert "\n" not in dropped.reason
    return dropped.reason


def test_plain_row_with_everything(folder: Path, store: ImageStore) -> None:
    sample = load_one(
        folder,
        store,
        {
            "id": 7,
            "prompt": "<image>\n<image> Compare.",
            "images": ["red.png", "sub/blue.png"],
            "chosen": "one",
            "rejected": "two",
            "truth": {"objects": ["circle"]},
            "kind": "question",
            "source": "ignored",
        },
    )
    assert (sample.id, sample.kind, sample.chosen, sample.rejected) == (
        "7", "question", "one", "two",
    )  # fmt: skip
    assert sample.prompt == (Turn(role="user", text="Compare.", num_images=2),)
    assert sample.truth == {"objects": ["circle"]}
    assert [store.get(image).getpixel((0, 0)) for image in sample.images] == [
        (255, 0, 0),
        (0, 0, 255),
    ]


def test_conversational_row_with_typed_parts(folder: Path, store: ImageStore) -> None:
    # Hugging Face's parts have every key, None where it does not apply.
    image = {"type": "image", "text": None}
    sample = load_one(
        folder,
        store,
        {
            "images": ["red.png", "sub/blue.png"],
            "prompt": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [image, {"type": "text", "text": "First?"}]},
                {"role": "assistant", "content": "Red."},
                {"role": "user", "content": [{"type": "text", "text": "Second?"}, image]},
            ],
            "chosen": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Blue."}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "Red."}]}],
        },
    )
    assert sample.prompt == (
        Turn(role="system", text="Be brief."),
        Turn(role="user", text="First?", num_images=1),
        Turn(role="assistant", text="Red."),
        Turn(role="user", text="Second?", num_images=1),
    )
    assert (sample.chosen, sample.rejected) == ("Blue.", "Red.")


def test_images_without_placeholder_stand_in_the_first_user_turn(
    folder: Path, store: ImageStore
) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    sample = load_one(folder, store, {"prompt": turns, "images": ["red.png"]})
    assert [turn.num_images for turn in sample.prompt] == [0, 1]


@pytest.mark.parametrize(
    ("row", "num_images"),
    [
        ({"image": "red.png"}, 1),
        ({"images": "red.png"}, 1),
        ({"images": [], "image": "red.png"}, 1),
        ({"images": [{"bytes": None, "path": "red.png"}]}, 1),
        ({"images": []}, 0),
        ({"image": None}, 0),
        ({}, 0),
    ],
)
def test_ways_to_give_images(
    folder: Path, store: ImageStore, row: dict[str, Any], num_images: int
) -> None:
    sample = load_one(folder, store, {"prompt": "Hi.", **row})
    assert len(sample.images) == sample.prompt[0].num_images == num_images


@pytest.mark.parametrize(
    ("row", "truth"),
    [
        ({}, None),
        ({"truth": "yes"}, {"answer": "yes"}),
        ({"ground_truth": 3}, {"answer": 3}),
        ({"truth": '{"count": 2}'}, {"count": 2}),
        ({"truth": "{not json"}, {"answer": "{not json"}),
        ({"truth": {"a": 1}, "ground_truth": {"b": 2}}, {"a": 1}),
        ({"truth": 2**70}, {"answer": str(2**70)}),
    ],
)
def test_truth(
    folder: Path, store: ImageStore, row: dict[str, Any], truth: dict[str, Any] | None
) -> None:
    assert load_one(folder, store, {**GOOD, **row}).truth == truth


def test_completion_stands_for_chosen(folder: Path, store: ImageStore) -> None:
    assert load_one(folder, store, {**GOOD, "completion": "c"}).chosen == "c"
    assert load_one(folder, store, {**GOOD, "completion": "c", "chosen": "d"}).chosen == "d"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": "<image>", "images": ["red.png"]}, "prompt is empty"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": None}, "no prompt"),
        ({"prompt": 3}, "prompt is a int"),
        ({"prompt": "a <image> b", "images": ["red.png"]}, "inside its text"),
        ({"prompt": "<image> a", "images": []}, "1 image placeholders for 0 images"),
        ({"prompt": "<image> a", "images": ["red.png"] * 2}, "1 image placeholders for 2 images"),
        ({"prompt": ["a"]}, "prompt turn 1 is not an object"),
        ({"prompt": [{"role": "human", "content": "a"}]}, "role 'human'; use system, user"),
        ({"prompt": [{"role": [], "content": "a"}]}, r"role \[\]"),
        ({"prompt": [{"role": "user", "content": None}]}, "content that is a null"),
        ({"prompt": [{"role": "user", "content": [{"type": "video"}]}]}, "type 'video'"),
        ({"prompt": [{"role": "user", "content": [3]}]}, "type None"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image", "image": "red.png"}]}]},
            "put it in `images`",
        ),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "ends with a turn of the assistant"),
        ({"prompt": [{"role": "system", "content": "<image> a"}]}, "in a turn of the system"),
        ({"images": ["none.png"]}, "none.png: no such image file"),
        ({"images": ["cut.png"]}, "cut.png: damaged or cut off"),
        ({"images": ["train.jsonl"]}, "train.jsonl: not an image"),
        ({"images": ["../outside.png"]}, "'../outside.png' leaves"),
        ({"images": ["sub/../../outside.png"]}, "leaves"),
        ({"images": ["/etc/hostname"]}, "'/etc/hostname' leaves"),
        ({"images": ["https://example.org/a.png"]}, "is a URL; download it"),
        ({"images": ["data:image/png;base64,AAAA"]}, "is a URL"),
        ({"images": [3]}, "an image is a int"),
        ({"images": [{"path": None}]}, "an image is a null"),
        ({"images": [""]}, "an image is a str"),
        ({"chosen": ""}, "chosen is empty"),
        ({"chosen": []}, "chosen is empty"),
        ({"chosen": 1}, "chosen is a int"),
        ({"rejected": "a <image>"}, "image placeholder"),
        ({"chosen": [{"role": "user", "content": "a"}]}, "not of the assistant"),
    ],
)
def test_bad_rows_are_dropped_with_a_reason(
    folder: Path, store: ImageStore, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError):
        load_samples(write(folder, {**GOOD, **row}), store)
    assert re.search(message, reason(folder, store, {**GOOD, **row}))


def test_enormous_image_is_dropped(folder: Path, store: ImageStore) -> None:
    Image.new("RGB", (200, 100)).save(folder / "big.png")
    assert "200x100 pixels" in reason(folder, store, {**GOOD, "images": ["big.png"]})


def test_same_id_twice_is_dropped(folder: Path, store: ImageStore) -> None:
    rows = [{**GOOD, "id": f"r{i % 30}"} for i in range(31)]
    data = load_samples(write(folder, *rows), store)
    assert [(bad.row, bad.reason) for bad in data.dropped] == [
        (31, "id 'r0' is taken by an earlier row")
    ]


def test_more_than_five_percent_bad_rows_name_the_first_three(
    folder: Path, store: ImageStore
) -> None:
    bad = [{**GOOD, "images": [f"none{i}.png"]} for i in range(4)]
    with pytest.raises(UserError) as caught:
        load_samples(write(folder, *[GOOD] * 60, *bad), store)
    line = str(caught.value)
    assert "4 of 64 rows cannot be used, more than 5%" in line
    for i in range(3):
        assert f"row {61 + i}: " in line
        assert f"none{i}.png" in line
    assert "none3.png" not in line
    # 4 of 80 rows are exactly 5 %.
    assert len(load_samples(write(folder, *[GOOD] * 76, *bad), store).dropped) == 4


def test_limit_counts_usable_rows(folder: Path, store: ImageStore) -> None:
    path = write(folder, *[GOOD] * 25, {"prompt": ""}, *[GOOD] * 25)
    data = load_samples(path, store, limit=26)
    assert (len(data.samples), len(data.dropped)) == (26, 1)
    assert data.samples[-1].id == "train-27"
    with pytest.raises(UserError, match="limit is 0"):
        load_samples(path, store, limit=0)


def test_image_root_and_links(folder: Path, store: ImageStore, tmp_path: Path) -> None:
    row = {**GOOD, "images": ["blue.png"]}
    (sample,) = load_samples(write(folder, row), store, image_root=folder / "sub").samples
    assert store.get(sample.images[0]).getpixel((0, 0)) == (0, 0, 255)
    (folder / "linked").symlink_to(tmp_path)
    load_one(folder, store, {**GOOD, "images": ["linked/outside.png"]})
    load_one(folder, store, {**GOOD, "images": [str(folder / "red.png")]})


def test_description_is_one_line(folder: Path, store: ImageStore) -> None:
    rows = [{**GOOD, "chosen": "a", "rejected": "b"}] * 2 + [{"prompt": "Hi."}]
    assert load_samples(write(folder, *rows), store).description == (
        "train.jsonl: TRL JSONL, 3 samples (2 with images, 1 different images), "
        "prompts with chosen, rejected; 0 rows dropped"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty data set"),
        (b"\n  \n", "empty data set"),
        (b'{"prompt": "a"}\n{"prompt": ', "line 2 is not JSON"),
        (b'{"prompt": "a"}\n\n{"prompt": "\xff"}\n', "line 3 is not JSON"),
        (b"[" * 100_000, "element 1 is not JSON"),
        (b'{"prompt": "a"}\n[1]', "line 2 is a list; write one object per line"),
        (b'["prompt"]', "element 1 is a str; write one object per line"),
        (b'[{"prompt": "a"}, {"prompt": "b"', "element 2 is not JSON"),
        (b'[{"prompt": "a"}] {"prompt": "b"}', "something follows the array"),
        (
            b'{"question": "a", "image": "red.png"}',
            "no known format.*found: image, question; .*LLaVA",
        ),
    ],
)
def test_bad_files(folder: Path, store: ImageStore, content: bytes, message: str) -> None:
    path = folder / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_samples(path, store)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_byte_order_mark_and_odd_separators(folder: Path, store: ImageStore) -> None:
    path = folder / "train.jsonl"
    path.write_bytes('\ufeff{"prompt": "a\u2028b"}\r\n'.encode())
    assert load_samples(path, store).samples[0].prompt[0].text == "a\u2028b"


def test_missing_file_names_its_neighbours(folder: Path, store: ImageStore) -> None:
    write(folder, GOOD)
    with pytest.raises(UserError, match=r"nearest names: train.jsonl"):
        load_samples(folder / "trian.jsonl", store)
    with pytest.raises(UserError, match="no folder"):
        load_samples(folder / "none" / "train.jsonl", store)
    with pytest.raises(UserError, match=r"unknown suffix '.csv'; use .jsonl, .json, .parquet or"):
        load_samples(folder / "train.csv", store)
    (folder / "dir.jsonl").mkdir()
    with pytest.raises(UserError, match="is not a file"):
        load_samples(folder / "dir.jsonl", store)


def test_parquet_as_hugging_face_writes_it(folder: Path, store: ImageStore) -> None:
    part = {"type": "image", "text": None}
    text = {"type": "text", "text": "What?"}
    rows = [
        {
            "prompt": [{"role": "user", "content": [part, text]}],
            "images": [{"bytes": png("red"), "path": "x.png"}],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "Red."}]}],
            "truth": {"seen": dt.date(2024, 5, 1), "n": 1},
        },
        {"prompt": [{"role": "user", "content": [part, text]}], "images": [{"path": "red.png"}]},
    ]
    path = folder / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    data = load_samples(path, store)
    first, second = data.samples
    assert first.images == second.images
    assert (first.id, second.id, first.chosen) == ("train-1", "train-2", "Red.")
    assert first.truth == {"seen": "2024-05-01", "n": 1}
    assert "TRL parquet, 2 samples" in data.description
    assert "prompts with chosen, truth" in data.description


def test_damaged_and_empty_parquet(folder: Path, store: ImageStore) -> None:
    path = folder / "train.parquet"
    path.write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match="damaged parquet"):
        load_samples(path, store)
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    with pytest.raises(UserError, match="empty data set"):
        load_samples(path, store)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["<image>", "red.png", "user", "assistant", "text", "image"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "path", "bytes", "image"]), inner
    ),
    max_leaves=8,
)  # fmt: skip
COLUMNS = ["prompt", "images", "image", "chosen", "rejected", "completion", "truth", "id", "kind"]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.sampled_from(COLUMNS), VALUES))
def test_any_row_is_read_or_refused(
    folder: Path, store: ImageStore, tmp_path: Path, row: dict[str, Any]
) -> None:
    with RecordWriter(tmp_path / "samples.msgpack") as writer:
        try:
            (sample,) = load_samples(write(folder, row), store).samples
        except UserError:
            return
        assert sum(turn.num_images for turn in sample.prompt) == len(sample.images)
        writer.append(sample)


def judged(name: str, score: float | None) -> ScoredRollout:
    rollout = Rollout(
        id=name,
        sample_id="s0",
        text=f"answer {name}",
        token_ids=(3, 2),
        logprobs=(-0.5, -0.5),
        policy_version=0,
        seed=1,
        temperature=1.0,
        finish_reason="stop",
        prompt_tokens=9,
    )
    failure = "nan" if score is None else None
    return ScoredRollout(
        rollout=rollout, judge="rules", score=score, failure=failure, critique=Critique(text="ok")
    )


def test_export_of_rollouts_and_pairs_loads_again(tmp_path: Path, store: ImageStore) -> None:
    image = store.put_image(Image.new("RGB", (4, 4), "red"))
    turn = Turn(role="user", text="What?", num_images=1)
    sample = Sample(id="s0", prompt=(turn,), images=(image,), kind="describe", truth={"n": [1]})
    good, bad = judged("good", 1.0), judged("bad", -1.0)
    with RecordWriter(tmp_path / "r.msgpack") as writer:
        for record in (sample, good, bad, judged("lost", None)):
            writer.append(record)
        writer.append(PreferencePair(sample_id="s0", chosen=good, rejected=bad, margin=2.0))
    paths = export_parquet(tmp_path / "r.msgpack", tmp_path / "out" / "r.parquet", store)
    assert [path.name for path in paths] == ["r.parquet", "r_pairs.parquet"]
    rows = pq.read_table(paths[0]).to_pylist()
    assert [(row["id"], row["score"], row["failure"]) for row in rows] == [
        ("good", 1.0, None),
        ("bad", -1.0, None),
        ("lost", None, "nan"),
    ]
    assert rows[0]["completion"] == "answer good"
    other = ImageStore(tmp_path / "other")
    (pair,) = load_samples(paths[1], other).samples
    assert (pair.prompt, pair.images) == (sample.prompt, sample.images)
    assert (pair.kind, pair.truth) == (sample.kind, sample.truth)
    assert (pair.chosen, pair.rejected) == ("answer good", "answer bad")


def test_export_needs_the_samples_and_something_to_write(tmp_path: Path, store: ImageStore) -> None:
    sample = Sample(id="s0", prompt=(Turn(role="user", text="What?"),))
    path, out = tmp_path / "r.msgpack", tmp_path / "r.parquet"
    with RecordWriter(path) as writer:
        with pytest.raises(UserError, match="holds no judged rollout"):
            export_parquet(path, out, store)
        writer.append(judged("a", 1.0))
    with pytest.raises(UserError, match="no Sample record 's0'"):
        export_parquet(path, out, store)
    assert export_parquet(path, out, store, samples=[sample]) == [out]
