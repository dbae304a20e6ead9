"""A converted file reads back as the samples it was made from, in both forms."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainers.data.convert import GROUP_ROWS, write_records, write_trl
from trainers.data.datasets import load_samples
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.record_file import read_records
from trainers.data.records import Candidate, Sample, Turn

# As the readers leave them: no space around, no placeholder inside, valid in UTF-8.
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and "<image>" not in text
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)
CANDIDATES = st.builds(
    Candidate,
    text=WORDS,
    label=WORDS | st.just(""),
    score=st.none() | NUMBERS,
    critique=st.none() | WORDS,
    aspects=st.dictionaries(WORDS, NUMBERS, max_size=2),
)
PARTS = {
    "kind": WORDS | st.just(""),
    "truth": st.none() | st.dictionaries(WORDS, JSON, max_size=2),
    "chosen": st.none() | WORDS,
    "rejected": st.none() | WORDS,
    "candidates": st.lists(CANDIDATES, max_size=2).map(tuple),
    "is_tie": st.booleans(),
    "margin": st.none() | NUMBERS,
    "provenance": st.dictionaries(WORDS, JSON, max_size=2),
}


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def sample(number: int, store: ImageStore, **parts: object) -> Sample:
    """Two images in two turns, one text-only turn between them."""
    images = [store.put_image(Image.new("RGB", (3, 3), (number % 200, i, 0))) for i in range(2)]
    prompt = (
        Turn(role="system", text="Be brief."),
        Turn(role="user", text="First?", num_images=1),
        Turn(role="assistant", text="Red."),
        Turn(role="user", text="Second?\n\nAnd why?", num_images=1),
    )
    return Sample(id=f"s{number}", prompt=prompt, images=tuple(images), **parts)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(parts=st.lists(st.fixed_dictionaries(PARTS), min_size=1, max_size=3))
def test_round_trip(parts: list[dict[str, object]], tmp_path: Path, store: ImageStore) -> None:
    samples = tuple(sample(i, store, **part) for i, part in enumerate(parts))
    assert write_trl(tmp_path / "out.parquet", samples, store) == len(samples)
    # another store: what is read comes out of the file
    again = load_samples(tmp_path / "out.parquet", ImageStore(tmp_path / "other"))
    assert again.samples == samples and not again.dropped
    assert "TRL parquet" in again.description
    (tmp_path / "out.msgpack").unlink(missing_ok=True)
    assert write_records(tmp_path / "out.msgpack", samples) == len(samples)
    assert read_records(tmp_path / "out.msgpack").records == samples


def test_row_groups_are_small_and_no_temporary_file_stays(
    tmp_path: Path, store: ImageStore
) -> None:
    samples = [sample(i, store) for i in range(GROUP_ROWS + 3)]
    write_trl(tmp_path / "out.parquet", samples, store)
    metadata = pq.ParquetFile(tmp_path / "out.parquet").metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == [GROUP_ROWS, 3]
    features = json.loads(metadata.metadata[b"huggingface"])["info"]["features"]
    assert features["images"] == {"feature": {"_type": "Image"}, "_type": "List"}
    assert features["candidates"]["feature"]["score"] == {"dtype": "float64", "_type": "Value"}
    assert not list(tmp_path.glob(".*.tmp"))


def test_what_fails_leaves_nothing(tmp_path: Path, store: ImageStore) -> None:
    bad = sample(1, store, truth={"raw": b"\x00"})
    with pytest.raises(UserError, match="sample s1: what it holds has no form in JSON"):
        write_trl(tmp_path / "out.parquet", [sample(0, store), bad], store)
    surrogate = sample(1, store, chosen="\ud800")
    with pytest.raises(UserError, match="cannot be written as parquet"):
        write_trl(tmp_path / "out.parquet", [surrogate], store)
    assert [entry.name for entry in tmp_path.iterdir()] == ["images"]
    assert write_records(tmp_path / "out.msgpack", [bad, surrogate]) == 2
    assert read_records(tmp_path / "out.msgpack").records == (bad, surrogate)


def test_samples_of_older_files_have_the_defaults(tmp_path: Path, store: ImageStore) -> None:
    from trainers.data.wire import from_wire, to_wire

    wire = to_wire(sample(1, store))
    for name in ("candidates", "is_tie", "margin", "provenance"):
        del wire[name]
    assert from_wire(wire) == sample(1, store)
    del wire["kind"]
    with pytest.raises(UserError, match=r"missing fields \['kind'\], unknown fields \[\]"):
        from_wire(wire)
