"""Record files: exact round trips, cuts at every byte, damage, and strict reading."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainers.data.errors import UserError
from trainers.data.record_file import FRAME, HEADER, MAGIC, RecordWriter, read_records
from trainers.data.records import (
    Correction,
    Critique,
    Finding,
    PreferencePair,
    Record,
    Rollout,
    Sample,
    ScoredRollout,
    Turn,
)
from trainers.data.wire import from_wire, to_wire

TEXT = st.text(st.characters(exclude_categories=()), max_size=12)  # lone surrogates included
INT = st.integers(0, 2**63 - 1)
FLOAT = st.floats(allow_nan=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | FLOAT | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def tuples(items: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=4).map(tuple)


ROLES = st.sampled_from(["system", "user", "assistant"])
TURNS = st.builds(Turn, role=ROLES, text=TEXT, num_images=INT)
SAMPLES = st.builds(
    Sample,
    id=TEXT,
    prompt=tuples(TURNS),
    images=tuples(TEXT),
    kind=TEXT,
    truth=st.none() | st.dictionaries(TEXT, JSON, max_size=3),
    chosen=st.none() | TEXT,
    rejected=st.none() | TEXT,
)
ROLLOUTS = st.builds(
    Rollout,
    id=TEXT,
    sample_id=TEXT,
    text=TEXT,
    token_ids=tuples(INT),
    logprobs=tuples(FLOAT),
    policy_version=INT,
    seed=INT,
    temperature=FLOAT,
    finish_reason=st.sampled_from(["stop", "length"]),
    prompt_tokens=INT,
)
FINDINGS = st.builds(
    Finding,
    claim=TEXT,
    verdict=st.sampled_from(["ok", "bad", "missing"]),
    kind=st.sampled_from(["existence", "attribute", "count", "relation", "text", "scene"]),
    correction=st.none() | TEXT,
)
CRITIQUES = st.none() | st.builds(Critique, text=TEXT, findings=tuples(FINDINGS))
COMPONENTS = st.dictionaries(TEXT, FLOAT, max_size=3)
SCORED = st.builds(
    ScoredRollout,
    rollout=ROLLOUTS,
    judge=TEXT,
    score=FLOAT,
    critique=CRITIQUES,
    components=COMPONENTS,
) | st.builds(ScoredRollout, rollout=ROLLOUTS, judge=TEXT, failure=TEXT, components=COMPONENTS)
PAIRS = st.builds(PreferencePair, sample_id=TEXT, chosen=SCORED, rejected=SCORED, margin=FLOAT)
CORRECTIONS = st.builds(Correction, sample_id=TEXT, rollout_id=TEXT, turns=tuples(TURNS))
RECORDS = st.one_of(SAMPLES, ROLLOUTS, SCORED, PAIRS, CORRECTIONS)

ROLLOUT = Rollout(
    id="r0",
    sample_id="s0",
    text="a red circle .",
    token_ids=(3, 4, 2),
    logprobs=(-0.5, -0.25, -0.125),
    policy_version=1,
    seed=7,
    temperature=1.0,
    finish_reason="stop",
    prompt_tokens=24,
)
SMALL: tuple[Record, ...] = (
    Sample(id="s0", prompt=(Turn(role="user", text="describe", num_images=1),), images=("ab",)),
    ScoredRollout(rollout=ROLLOUT, judge="rules", score=0.5),
    Correction(sample_id="s0", rollout_id="r0", turns=(Turn(role="user", text="why"),)),
)


def write(path: Path, records: tuple[Record, ...] = SMALL) -> bytes:
    path.unlink(missing_ok=True)
    with RecordWriter(path) as writer:
        for record in records:
            writer.append(record)
    return path.read_bytes()


def frame_ends(data: bytes) -> list[int]:
    """Offsets at which a whole number of frames ends: after 0, 1, 2 ... records."""
    ends = [len(HEADER)]
    while ends[-1] < len(data):
        (length, _) = FRAME.unpack_from(data, ends[-1])
        ends.append(ends[-1] + FRAME.size + length)
    return ends


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rounds" / "round_000000.msgpack"


@settings(max_examples=150, deadline=None)
@given(RECORDS)
def test_round_trip_of_every_record_type(record: Record) -> None:
    packed = msgpack.packb(to_wire(record), unicode_errors="surrogatepass")
    assert from_wire(msgpack.unpackb(packed, unicode_errors="surrogatepass")) == record


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(RECORDS, max_size=4))
def test_file_returns_records_in_order(path: Path, records: list[Record]) -> None:
    write(path, tuple(records))
    result = read_records(path)
    assert result.records == tuple(records)
    assert (result.dropped_bytes, result.warning) == (0, None)


def test_layout_is_the_documented_one(path: Path) -> None:
    data = write(path, SMALL[:1])
    assert data[:8] == b"QUARTET\n"
    assert struct.unpack("<I", data[8:12]) == (1,)
    length, crc = struct.unpack("<II", data[12:20])
    assert (length, crc) == (len(data) - 20, zlib.crc32(data[20:]))
    payload = msgpack.unpackb(data[20:])
    assert list(payload)[:2] == ["type", "id"]
    assert payload["type"] == "Sample"


def test_cut_at_every_byte_loses_at_most_the_last_record(path: Path) -> None:
    data = write(path)
    ends = frame_ends(data)
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        result = read_records(path)
        whole = sum(end <= cut for end in ends[1:])
        assert result.records == SMALL[:whole]
        kept = max((end for end in ends if end <= cut), default=0)
        assert result.dropped_bytes == cut - kept
        if cut in ends:
            assert result.warning is None
        else:
            assert result.warning is not None
            assert str(path) in result.warning
            assert "\n" not in result.warning


def test_append_after_every_cut_continues_the_file(path: Path) -> None:
    data = write(path)
    ends = frame_ends(data)
    for cut in range(0, len(data) + 1, 7):
        path.write_bytes(data[:cut])
        with RecordWriter(path) as writer:
            writer.append(SMALL[0])
            said = writer.warning
        whole = sum(end <= cut for end in ends[1:])
        result = read_records(path)
        assert result.records == (*SMALL[:whole], SMALL[0])
        assert result.warning is None
        assert (said is None) == (cut in ends)


def test_writer_can_refuse_a_cut_tail(path: Path) -> None:
    data = write(path)
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match="cut off after 2 whole records"):
        RecordWriter(path, repair=False)
    assert path.read_bytes() == data[:-1]


def test_frames_reach_the_file_before_close(path: Path) -> None:
    writer = RecordWriter(path)
    writer.append(SMALL[0])
    assert read_records(path).records == SMALL[:1]
    writer.close()
    writer.close()


def test_damage_before_the_last_frame_names_its_offset(path: Path) -> None:
    data = write(path)
    starts = frame_ends(data)
    for frame in (0, 1):
        for position in range(starts[frame], starts[frame + 1]):
            damaged = bytearray(data)
            damaged[position] ^= 0xFF
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=rf"damaged at byte {starts[frame]} "):
                read_records(path)
    with pytest.raises(UserError, match="damaged"):
        RecordWriter(path)


def test_damaged_last_frame_and_tail_of_zeros_are_dropped(path: Path) -> None:
    # What a machine that lost power leaves: the file's length without its content.
    data = write(path)
    start = frame_ends(data)[-2]
    path.write_bytes(data[:start] + bytes(len(data) - start))
    assert read_records(path).records == SMALL[:2]
    path.write_bytes(data + bytes(100))
    result = read_records(path)
    assert (result.records, result.dropped_bytes) == (SMALL, 100)
    assert result.warning is not None


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3))
def test_mutated_files_are_read_or_refused(path: Path, edits: list[tuple[int, int]]) -> None:
    data = bytearray(write(path))
    for position, value in edits:
        data[position % len(data)] = value
    path.write_bytes(data)
    try:
        result = read_records(path)
    except UserError:
        return
    assert result.records == SMALL[: len(result.records)]
    # Two damaged places together may look like a cut; one never does.
    if len(edits) < 2:
        assert len(result.records) >= len(SMALL) - 1


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(record=RECORDS, data=st.data())
def test_mutated_payloads_with_a_right_checksum(path: Path, record: Record, data: Any) -> None:
    payload = bytearray(msgpack.packb(to_wire(record), unicode_errors="surrogatepass"))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(payload) - 1))
        payload[position] = data.draw(st.integers(0, 255))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(HEADER + FRAME.pack(len(payload), zlib.crc32(payload)) + payload)
    try:
        (read,) = read_records(path).records
    except UserError:
        return
    assert isinstance(read, Record)


def frame_of(value: Any) -> bytes:
    payload: bytes = msgpack.packb(value)
    return HEADER + FRAME.pack(len(payload), zlib.crc32(payload)) + payload


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "Sampel"}, "unknown record type 'Sampel'"),
        ({"extra": 1}, r"unknown fields \['extra'\]"),
        ({"id": 3}, "Sample.id: expected str, got int"),
        ({"images": "ab"}, "Sample.images: expected list, got str"),
        ({"truth": []}, "Sample.truth: expected map"),
        ({"prompt": [{"role": "user"}]}, r"Sample.prompt: missing fields \['num_images', 'text'\]"),
        ({"prompt": [{"role": "bot", "text": "", "num_images": 0}]}, "role: expected one of"),
        ({"prompt": [{"role": "user", "text": "", "num_images": True}]}, "expected int, got bool"),
    ],
)
def test_strict_reading(path: Path, changes: dict[str, Any], message: str) -> None:
    path.parent.mkdir()
    path.write_bytes(frame_of({**to_wire(SMALL[0]), **changes}))
    with pytest.raises(UserError, match=message) as caught:
        read_records(path)
    assert f"{path}: frame 0" in str(caught.value)


def test_missing_field_and_broken_invariant() -> None:
    wire = to_wire(SMALL[1])
    with pytest.raises(UserError, match="exactly one of score and failure"):
        from_wire({**wire, "failure": "nan"})
    del wire["judge"]
    with pytest.raises(UserError, match=r"missing fields \['judge'\]"):
        from_wire(wire)
    with pytest.raises(UserError, match="expected a map"):
        from_wire([])  # type: ignore[arg-type]


def test_foreign_files_and_other_schema_versions(path: Path) -> None:
    path.parent.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_records(path)
    path.write_bytes(b"PAR1 and so on")
    with pytest.raises(UserError, match="not a record file"):
        read_records(path)
    with pytest.raises(UserError, match="not a record file"):
        RecordWriter(path)
    path.write_bytes(MAGIC + struct.pack("<I", 99))
    with pytest.raises(UserError, match="schema version 99, this program reads 1"):
        read_records(path)


@pytest.mark.parametrize(
    "record",
    [
        replace(ROLLOUT, token_ids=tuple(np.arange(3))),
        replace(ROLLOUT, logprobs=tuple(np.ones(1, dtype=np.float32))),
        replace(ROLLOUT, seed=2**70),
        Sample(id="s", prompt=(), truth={"mask": np.zeros(2)}),
    ],
)
def test_what_the_reader_refuses_is_not_written(path: Path, record: Record) -> None:
    with RecordWriter(path) as writer:
        writer.append(SMALL[0])
        with pytest.raises(UserError, match="cannot be stored"):
            writer.append(record)
        writer.append(SMALL[2])
    assert read_records(path).records == (SMALL[0], SMALL[2])


def test_several_at_once_are_the_bytes_of_one_after_the_other(path: Path) -> None:
    one_by_one = write(path)
    path.unlink()
    with RecordWriter(path) as writer:
        writer.extend(SMALL)
    assert path.read_bytes() == one_by_one


def test_of_several_none_is_written_if_one_cannot_be(path: Path) -> None:
    with RecordWriter(path) as writer:
        with pytest.raises(UserError, match="cannot be stored"):
            writer.extend([SMALL[0], replace(ROLLOUT, seed=2**70)])
        writer.append(SMALL[2])
    assert read_records(path).records == (SMALL[2],)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be written"):
        RecordWriter(tmp_path / "file" / "r.msgpack")


def test_records_from_before_a_field_existed_are_read_with_its_default():
    finding = {"claim": "dog", "verdict": "bad", "kind": "existence", "correction": None}
    rollout = {
        "id": "r", "sample_id": "s", "text": "a dog", "token_ids": [1], "logprobs": [-1.0],
        "policy_version": 0, "seed": 0, "temperature": 1.0, "finish_reason": "stop",
        "prompt_tokens": 3,
    }  # fmt: skip
    old = {
        "type": "ScoredRollout",
        "rollout": rollout,
        "judge": "j",
        "score": 1.0,
        "failure": None,
        "critique": {"text": "", "findings": [finding]},
        "components": {},
    }
    record = from_wire(old)
    assert isinstance(record, ScoredRollout) and record.rollout.token_ends == ()
    (read,) = record.critique.findings
    assert read.span is None and read.severity == 1.0
    assert from_wire(to_wire(record)) == record
    finding["span"] = [5, 2]
    with pytest.raises(UserError, match="is not start < end"):
        from_wire(old)
