"""Damaged input of every kind is read or refused with `UserError`, never another exception.

Seeded, so that a failure can be found again. A thousand inputs by default, ten thousand in
`test_ten_thousand_mutations`.
"""

from __future__ import annotations

import copy
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.damaged import damaged
from trainers.data.datasets import SampleFile, stream_samples
from trainers.data.errors import UserError
from trainers.data.formats.names import FORMAT_NAMES
from trainers.data.images import ImageStore
from trainers.data.record_file import (
    FRAME,
    HEADER,
    RecordWriter,
    from_wire,
    read_records,
    to_wire,
)
from trainers.data.records import Candidate, Sample, Turn
from trainers.data.tally import Dropped, Tally

PAIR = {"chosen": "A cat.", "rejected": "A dog.", "image": "cat.png"}
TURN = {"role": "user", "content": "<image>What is it?"}
ANSWER = {"role": "assistant", "content": "A cat."}
PARTS = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
ASPECT = {"Rating": "4", "Rationale": "Names it."}
ROWS: dict[str, dict[str, Any]] = {
    "trl": {
        **PAIR,
        "prompt": [TURN],
        "truth": {"n": [1, 2]},
        "candidates": [{"text": "a", "score": 1.0, "aspects": '{"b": 2}'}],
        "label": True,
        "margin": 1.0,
    },
    "rlaif-v": {**PAIR, "question": "What?", "origin_split": '{"type": "q"}', "idx": 3},
    "mm-rlhf": {**PAIR, "prompt": "What?", "chosen_reason": "r", "is_tie": 0, "ls_factor": 0.5},
    "llava": {
        "image": ["cat.png"],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "A cat."},
        ],
        "rejected_conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "A dog."},
        ],
        "output_1": {"from": "gpt", "value": "x"},
        "output_2": {"from": "gpt", "value": "y"},
        "preference": 1,
    },
    "bpo": {
        "image": "cat.png",
        "prompt": "<image>What?",
        "completions": [
            {"score": 1, "response": "A cat.", "type": "gt"},
            {"score": 0, "response": "A dog.", "type": "llm-hal"},
        ],
    },
    "vlfeedback": {
        "img_path": "cat.png",
        "prompt": "What?",
        "completions": [
            {"model": "a", "response": "A cat.", "annotations": {"Helpfulness": ASPECT}},
            {"model": "b", "response": "A dog.", "annotations": {"Helpfulness": ASPECT}},
        ],
    },
    "ms-swift": {
        "messages": [{"role": "system", "content": "s"}, TURN, ANSWER],
        "images": [{"path": "cat.png", "bytes": None}],
        "rejected_messages": [{"role": "system", "content": "s"}, TURN, ANSWER],
        "margin": "0.5",
    },
}
deep: Any = "x"
for _ in range(200):  # more levels than a record may have
    deep = [deep]
POOL: list[Any] = [
    None, True, False, 0, -1, 2**70, 0.5, float("nan"), float("inf"), 1e308, "", " ", "x",
    "<image>", "<image><image>", "a <image> b", "../cat.png", "cat.png", "/etc/hostname", "a\0b",
    "https://x", "\ud800", "{", '{"type": 3}', "[" * 2000, "N/A", "no_critic", b"\x89PNG", [], {},
    [[]], [None], {"": None}, {"role": "user"}, {"from": [], "value": {}}, {"bytes": b""},
    TURN, [PARTS], [ANSWER], {"response": ["a", "b"], "annotations": [None, 3]}, deep,
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with one of its keys, from all levels."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list) and value[key]:
            found += places(value[key])
    return found


def mutated_row(row: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    row = copy.deepcopy(row)
    for _ in range(chance.randint(1, 4)):
        if not row:
            return row
        holder, key = chance.choice(places(row))
        action = chance.randrange(5)
        if action == 0:
            del holder[key]
        elif action == 1:
            other, its_key = chance.choice(places(row))
            holder[key] = copy.deepcopy(other[its_key])
        elif action == 2 and isinstance(holder[key], str):
            at = chance.randint(0, len(holder[key]))
            extra = chance.choice(["<image>", "\n", "\x00", "\ud800", "<bbox>", "  "])
            holder[key] = holder[key][:at] + extra + holder[key][at:]
        elif action == 3 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(chance.choice(POOL)))
        else:
            holder[key] = copy.deepcopy(chance.choice(POOL))
    return row


PARTS = (b"\xff" * 4, b"\0" * 4, b"[{[{", b'","')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    return tmp_path


def fuzz_rows(folder: Path, chance: random.Random, number: int) -> int:
    """Rows as a reader of files hands them over; what is accepted can be stored."""
    accepted = 0
    store = ImageStore(folder / "store", max_pixels=100)
    for name in FORMAT_NAMES[1:]:
        path = folder / f"{name}.jsonl"
        path.write_text(json.dumps(ROWS[name]))
        file = SampleFile(path, store, format=name)
        assert isinstance(next(file.stream(Tally())), Sample), name
        for _ in range(number):
            try:
                sample = file.sample(*file.content(1, mutated_row(ROWS[name], chance)))
            except UserError:
                continue
            accepted += 1
            assert from_wire(to_wire(sample)) is not None
            assert msgpack.packb(to_wire(sample), unicode_errors="surrogatepass")
    return accepted


def fuzz_files(folder: Path, chance: random.Random, number: int) -> int:
    """Bytes of whole files: detection, parsing and rows together."""
    rows = list(ROWS.values())
    makers: dict[str, Callable[[Path, dict[str, Any]], None]] = {
        "jsonl": lambda path, row: path.write_text("\n".join([json.dumps(row)] * 3)) and None,
        "json": lambda path, row: path.write_text(json.dumps([row] * 3, indent=1)) and None,
        "parquet": lambda path, row: pq.write_table(pa.Table.from_pylist([row] * 3), path),
    }
    store = ImageStore(folder / "store", max_pixels=100)
    accepted = 0
    for suffix, make in makers.items():
        path = folder / f"rows.{suffix}"
        originals = []
        for row in rows:
            make(path, row)
            originals.append(path.read_bytes())
        for i in range(number):
            path.write_bytes(damaged(originals[i % len(rows)], chance, PARTS))
            refusal, items = "", []
            try:
                items = list(stream_samples(path, store))
            except UserError as error:
                refusal = str(error)
            assert items or (str(path) in refusal and "\n" not in refusal)
            accepted += sum(not isinstance(item, Dropped) for item in items)
    return accepted


def fuzz_records(folder: Path, chance: random.Random, number: int) -> int:
    """Bytes of record files: every whole record before the damage, or a refusal."""
    path = folder / "records.msgpack"
    with RecordWriter(path) as file:
        for i in range(3):
            file.append(
                Sample(
                    id=str(i),
                    prompt=(Turn(role="user", text="What?"),),
                    truth={"n": [1, None, 0.5]},
                    candidates=(Candidate(text="a", score=1.0, aspects={"b": 2.0}),),
                    provenance={"c": "d"},
                )
            )
    original = path.read_bytes()
    payload = msgpack.packb(to_wire(read_records(path).records[0]))
    accepted = 0
    for i in range(number):
        # half of them with a checksum that fits: it catches nearly all damage of a file
        inner = damaged(payload, chance, PARTS)
        framed = HEADER + FRAME.pack(len(inner), zlib.crc32(inner)) + inner
        path.write_bytes(framed if i % 2 else damaged(original, chance, PARTS))
        try:
            accepted += len(read_records(path).records)
        except UserError:
            continue
    return accepted


def fuzz(folder: Path, seed: int, number: int) -> None:
    """`number` inputs: seven tenths rows, a fifth files of bytes, a tenth records."""
    chance = random.Random(seed)
    # that some are accepted shows that the mutations are not all absurd
    assert fuzz_rows(folder, chance, number // 10) > number // 50
    assert fuzz_files(folder, chance, number // 15) > 0
    assert fuzz_records(folder, chance, number // 10) > 0


def test_a_thousand_mutations(folder: Path) -> None:
    fuzz(folder, seed=0, number=1_000)


@pytest.mark.slow
def test_ten_thousand_mutations(folder: Path) -> None:
    fuzz(folder, seed=1, number=10_000)
