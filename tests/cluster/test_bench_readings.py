"""What `quartet bench memory` makes of a GPU's numbers: all copies are in one process there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors import ledger
from actors.train import TrainActor
from cluster import bench, bench_plan
from cluster.bench import Cell, Load, bench_memory, process_bytes
from trainers.ledger import Copies

MIB = 2**20


@pytest.fixture
def card(monkeypatch):
    """A GPU whose allocator says what the test says; nothing is computed on it."""
    numbers = {"max_memory_allocated": 0, "max_memory_reserved": 0, "memory_reserved": 0}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    for name in numbers:
        monkeypatch.setattr(torch.cuda, name, lambda name=name: numbers[name] * MIB)
    monkeypatch.setattr(ledger, "_nvml_bytes", lambda: None)
    return numbers


def trained(role: str, activations: int) -> TrainActor:
    """A copy that holds 10 MiB and took a step with so many of activations."""
    actor = TrainActor()
    actor._engine = object()
    actor.spec = SimpleNamespace(role=role)  # type: ignore[assignment]
    actor._bytes_by_place = lambda: ({role: {"weights": 10 * MIB}}, {})  # type: ignore[method-assign]
    weights = torch.zeros(10 * MIB // 4)
    with actor.meter.track("train", role, 1, lambda: {"weights": [weights]}, None):
        torch.ones(activations * MIB // 4)
    return actor


def test_copies_of_one_process_are_counted_once(card):
    # PPO: two trained copies of 10, two frozen ones of 2. The policy's step takes 4, the critic's
    # 3. The allocator counts 1 and 2 more than that: 10 + 10 + 2 + 2 + 4 + 1 = 29, and 29 again.
    frozen = {"reference": {"weights": 2 * MIB}, "reward": {"weights": 2 * MIB}}
    measured: Copies = dict(frozen)
    beyond = []
    for role, other, activations in (("policy", "critic", 4), ("critic", "policy", 3)):
        card.update(max_memory_allocated=29, max_memory_reserved=32, memory_reserved=32)
        actor = trained(role, activations)
        reading = actor.end_phase("train", {other: {"weights": 10 * MIB}, **frozen})
        measured[role] = reading.copies[role]
        assert measured[role] == {"weights": 10 * MIB, "activations": activations * MIB}
        beyond.append(reading.copies["process"]["unattributed"])
        assert process_bytes(reading) == {
            "claimed": (24 + activations) * MIB,
            "unattributed": (5 - activations) * MIB,
            "allocator_slack": 3 * MIB,
            "runtime": None,
        }
    assert beyond == [MIB, 2 * MIB]
    given: dict[str, Any] = dict.fromkeys(Cell.__dataclass_fields__)
    cell = Cell(**{**given, "measured": measured, "unattributed": max(beyond)})
    # As if the peaks came at once: 24 that stay, 4 and 3 of activations, 2 beyond.
    assert cell.peak == 33 * MIB


def test_what_an_earlier_cell_left_is_freed_before_the_next_is_judged(monkeypatch):
    order: list[str] = []

    def lacking(device: Copies, host: Copies) -> tuple[int, int]:
        order.append("lacking")
        return 2, 1

    monkeypatch.setattr(bench, "give_back_dead", lambda: order.append("freed"))
    monkeypatch.setattr(bench, "lacking", lacking)
    bench_memory(["drawn"], ["nsft", "sft"], Load(batch=2, sequence=4), ["full"])
    assert order == ["freed", "lacking", "freed", "lacking"]


def test_the_plan_is_of_the_micro_batch(monkeypatch):
    seen = []

    def lacking(device: Copies, host: Copies) -> tuple[int, int]:
        seen.append(device["policy"])
        return 2, 1

    monkeypatch.setattr(bench, "lacking", lacking)
    for micro in (None, 2):
        load = Load(batch=32, sequence=32, micro_batch=micro)
        bench_memory(["drawn"], ["dpo"], load, ["full"])
    whole, parts = seen
    assert parts["weights"] == whole["weights"]
    assert bench_plan.total({"policy": parts}) < 0.7 * bench_plan.total({"policy": whole})
