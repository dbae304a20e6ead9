"""The ledger's arithmetic, by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from trainers.data.errors import UserError
from trainers.ledger import (
    LedgerRow,
    binding_phase,
    copies_at,
    phase_bytes,
    read_rows,
    write_rows,
)


def row(phase: str, copy: str, kind: str, size: int, *, round: int = 1, place="device", rank=0):
    return LedgerRow(
        round=round,
        phase=phase,
        process=f"{copy}/{rank}",
        copy=copy,
        kind=kind,
        place=place,
        bytes=size,
        source="storages",
    )


ROWS = [
    row("generate", "rollout_engine", "kv_cache", 50),
    row("train", "policy", "weights", 10),
    row("train", "policy", "activations", 70),
    row("train", "policy", "weights", 10, rank=1),
    row("train", "process", "runtime", 900, place="host"),
    row("train", "policy", "activations", 30, round=2),
]


def test_the_largest_round_of_a_phase_counts():
    assert phase_bytes(ROWS) == {"generate": 50, "train": 90}
    assert phase_bytes(ROWS, "host") == {"train": 900}
    assert binding_phase(ROWS) == "train"
    assert binding_phase([]) is None


def test_copies_that_take_turns_count_once_the_largest():
    turns = [
        replace(row("train", copy, kind, size), alone=True)
        for copy, kind, size in (
            ("policy", "weights", 10),
            ("policy", "activations", 30),
            ("critic", "weights", 25),
        )
    ]
    engine = row("train", "rollout_engine", "kv_cache", 50)
    assert phase_bytes([*turns, engine]) == {"train": 50 + 40}


def test_ranks_are_added_and_kinds_come_in_order():
    assert copies_at(ROWS, "train", "device") == {"policy": {"weights": 20, "activations": 70}}
    assert list(copies_at(ROWS, "train", "device")["policy"]) == ["weights", "activations"]
    assert copies_at(ROWS, "judge") == {}


def test_rows_survive_the_disk_and_a_cut_off_line(tmp_path: Path):
    path = tmp_path / "memory" / "ledger.jsonl"
    write_rows(path, ROWS[:3])
    write_rows(path, ROWS[3:])
    assert read_rows(path) == ROWS
    text = path.read_text()
    path.write_text(text[:-20])
    assert read_rows(path) == ROWS[:-1]


def test_a_damaged_line_is_named(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"round": 1}\n{}\n')
    with pytest.raises(UserError, match=r"ledger\.jsonl:1: not a ledger row"):
        read_rows(path)


@pytest.mark.parametrize("change", [{"bytes": "7"}, {"round": None}, {"kind": "x"}, {"extra": 1}])
def test_a_row_of_other_values_is_named(tmp_path: Path, change: dict[str, object]):
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(asdict(ROWS[0]) | change) + "\n")
    key = next(iter(change))
    with pytest.raises(UserError, match=rf"ledger\.jsonl:1: not a ledger row \({key}: "):
        read_rows(path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="not a ledger"):
        read_rows(path)
