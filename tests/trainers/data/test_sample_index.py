"""Files that are indexed and read by position: the same samples as in order, in little memory."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainers.data import row_files
from trainers.data.datasets import SampleFile, load_samples, stream_samples
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.row_files import JsonArray, open_rows
from trainers.data.sample_index import DECODED_ROWS, SampleIndex, index_samples
from trainers.data.tally import Dropped, Tally

KINDS = ("jsonl", "json", "parquet")


def row(number: int) -> dict[str, object]:
    return {"prompt": f"Describe number {number} \u2028 \u00e9.", "images": [f"{number % 3}.png"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def write(folder: Path, kind: str, rows: list[dict[str, object]]) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
    elif kind == "json":
        path.write_text(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in rows]
        path.write_text("\ufeff" + "\n".join(lines))
    return path


def indexed(path: Path, store: ImageStore) -> SampleIndex:
    return index_samples(SampleFile(path, store), Tally(), 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_index_gives_what_the_stream_gave(kind: str, folder: Path, store: ImageStore) -> None:
    rows = [row(i) for i in range(25)]
    rows[3]["prompt"] = rows[17]["prompt"] = " "
    path = write(folder, kind, rows)
    index = indexed(path, store)
    expected = [item for item in stream_samples(path, store) if not isinstance(item, Dropped)]
    assert len(index) == len(expected) == 23
    assert index.take(range(23)) == expected
    assert index.take([22, 0, 5, 5]) == [expected[i] for i in (22, 0, 5, 5)]
    assert index.take([]) == []
    assert [name for name, _ in index.contents()] == [sample.id for sample in expected]
    odd = index.only([i % 2 == 1 for i in range(23)])
    assert odd.take(range(len(odd))) == expected[1::2]
    assert [name for name, _ in odd.contents()] == [sample.id for sample in expected[1::2]]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.text(min_size=1), min_size=1, max_size=8),
    indent=st.sampled_from([None, 0, 3]),
    piece=st.integers(1, 40),
)
def test_arrays_are_read_whatever_the_pieces(
    texts: list[str], indent: int | None, piece: int, tmp_path: Path
) -> None:
    rows = [{"prompt": text, "n": [i, {"]": "}"}]} for i, text in enumerate(texts)]
    path = tmp_path / "rows.json"
    path.write_bytes(json.dumps(rows, indent=indent, ensure_ascii=True).encode())
    old, row_files.PIECE_BYTES = row_files.PIECE_BYTES, piece
    try:
        found = list(JsonArray(path).rows())
        assert [item for _, _, item in found] == rows
        positions = [position for _, position, _ in found]
        assert JsonArray(path).read(positions[::-1]) == rows[::-1]
    finally:
        row_files.PIECE_BYTES = old


def test_an_empty_array_is_an_empty_data_set(tmp_path: Path, store: ImageStore) -> None:
    (tmp_path / "rows.json").write_text(" [ ] ")
    with pytest.raises(UserError, match="empty data set"):
        load_samples(tmp_path / "rows.json", store)


def test_a_line_without_end_is_refused(
    tmp_path: Path, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "MAX_ROW_BYTES", 100)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a" * 200}))
    with pytest.raises(UserError, match="line 1 is longer than 100 bytes"):
        load_samples(tmp_path / "rows.jsonl", store)
    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": "a" * 200}, {"prompt": "b"}] * 9))
    monkeypatch.setattr(row_files, "PIECE_BYTES", 10)
    with pytest.raises(UserError, match="element 1 is not JSON"):
        load_samples(tmp_path / "rows.json", store)


def test_images_of_the_first_rows_only_are_opened_before_they_are_taken(
    folder: Path, store: ImageStore
) -> None:
    rows = [row(i) for i in range(DECODED_ROWS + 10)]
    (folder / "bad.png").write_bytes(b"no image")
    rows[-1]["images"] = ["bad.png"]
    path = write(folder, "jsonl", rows)
    index = indexed(path, store)
    assert len(index) == len(rows)
    good, bad = index.take([0, len(rows) - 1])
    assert not isinstance(good, Dropped)
    assert isinstance(bad, Dropped) and "bad.png: not an image" in bad.reason
    rows[DECODED_ROWS - 1]["images"] = ["bad.png"]
    assert len(indexed(write(folder, "jsonl", rows), store)) == len(rows) - 1
    rows[-1]["images"] = ["../bad.png"]  # a path is checked in every row
    assert len(indexed(write(folder, "jsonl", rows), store)) == len(rows) - 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_shrank_is_one_line(kind: str, folder: Path, store: ImageStore) -> None:
    path = write(folder, kind, [row(i) for i in range(30)])
    index = indexed(path, store)
    write(folder, kind, [row(0)])
    with pytest.raises(UserError) as caught:
        index.take([29])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(UserError):
        index.take([0])


def test_reasons_are_kept_up_to_a_number(
    folder: Path, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.data.tally.MAX_REASONS", 3)
    rows = [{"prompt": " "} if i % 2 else row(i) for i in range(20)]
    tally = Tally()
    file = SampleFile(write(folder, "jsonl", rows), store)
    assert len(index_samples(file, tally, 0.5)) == 10
    assert (len(tally.dropped), tally.num_dropped) == (3, 10)
    with pytest.raises(UserError, match=r"10 of 20 rows cannot be used, more than 40%"):
        index_samples(file, Tally(), 0.4)


def test_parquet_with_images_inside_is_read_by_position(folder: Path, store: ImageStore) -> None:
    rows = []
    for number in range(200):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "PNG")
        rows.append({"prompt": "p", "images": [{"bytes": buffer.getvalue(), "path": None}]})
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=70)
    index = indexed(path, store)
    for place, sample in zip((199, 0, 139, 140), index.take([199, 0, 139, 140]), strict=True):
        assert not isinstance(sample, Dropped)
        assert store.get(sample.images[0]).getpixel((0, 0)) == (place, 0, 0)
    assert open_rows(path).kind == "parquet"
