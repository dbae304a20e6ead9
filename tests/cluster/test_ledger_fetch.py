"""The run's ledger asks at once and fetches later; the rows are those of the phase that ended."""

from __future__ import annotations

import pytest

from actors.ledger import Reading
from cluster.ledger import Ledger
from trainers.comparison import Memory
from trainers.ledger import read_rows
from trainers.roles import Copy


class Processes:
    """Answers with the number of questions so far as the policy's bytes and core-seconds."""

    def __init__(self) -> None:
        self.asked = 0
        self.looks = 0

    def ask_readings(self, phase: str) -> dict[str, Reading]:
        self.asked += 1
        copies = {"policy": {"weights": self.asked}}
        reading = Reading(copies=copies, runtime=0, source="storages", cpu_seconds=self.asked)
        return {"policy/0": reading}

    def answered(self, asked: dict[str, Reading]) -> bool:
        return True

    def fetch_readings(self, asked: dict[str, Reading]) -> dict[str, Reading]:
        return dict(asked)

    def object_store_bytes(self) -> int:
        self.looks += 1
        return 100 * self.looks


@pytest.fixture
def ledger(tmp_path):
    return Ledger(Processes(), (Copy("policy", trained=True),), tmp_path)


def weights(rows) -> list[tuple[int, str, int]]:
    return [(row.round, row.phase, row.bytes) for row in rows if row.kind == "weights"]


def test_rows_are_fetched_at_the_next_phase_and_belong_to_theirs(ledger):
    ledger.end_phase(1, "generate")
    assert ledger.rows == []
    ledger.end_phase(1, "train")
    assert weights(read_rows(ledger.path)) == [(1, "generate", 2)]
    ledger.summary(Memory())
    assert weights(read_rows(ledger.path)) == [(1, "generate", 2), (1, "train", 3)]
    ledger.fetch()
    assert weights(ledger.rows) == [(1, "generate", 2), (1, "train", 3)]


def test_core_seconds_count_from_the_ledgers_start(ledger):
    for phase in ("generate", "train"):
        ledger.end_phase(1, phase)
    seconds = ledger.core_seconds()
    assert seconds["policy/0"] == 3 - 1 and seconds["driver"] > 0
    ledger.end_phase(2, "generate")
    assert ledger.core_seconds()["policy/0"] == 4 - 1


def test_the_object_store_is_looked_at_in_few_rounds(ledger):
    for round in range(1, 20):
        ledger.count_objects(round)
        ledger.end_phase(round, "train")
    ledger.fetch()
    found = {row.round: row.bytes for row in ledger.rows if row.kind == "objects" and row.bytes}
    assert found == {1: 100, 2: 200, 4: 300, 8: 400, 16: 500}


def test_what_the_driver_does_not_tell_is_an_unknown_row_and_no_bytes(ledger):
    def runtime(counted: int | None) -> list[tuple[int, str, str]]:
        reading = Reading(copies={}, runtime=counted, source="allocator", cpu_seconds=0)
        rows = ledger._rows(1, "train", "policy/0", reading)
        return [(row.bytes, row.place, row.source) for row in rows]

    assert runtime(None) == [(0, "device", "unknown")]
    assert runtime(7) == [(7, "device", "nvml")]
    assert runtime(0) == []
