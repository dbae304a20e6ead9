"""What one process reports: rows that add up, peaks of the largest batch, turns."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from actors import ledger
from actors.ledger import PhaseMeter

MIB = 2**20


def work(meter: PhaseMeter, phase: str, size: int, weights: torch.Tensor) -> bool:
    """One batch; whether it was tracked."""
    held = {"weights": [weights]}
    with meter.track(phase, "policy", size, lambda: held, None) as tracker:
        torch.ones(size * MIB // 4)
    return tracker is not None


def test_only_a_larger_batch_is_tracked():
    meter, weights = PhaseMeter(), torch.zeros(MIB // 4)
    tracked = [work(meter, "train", size, weights) for size in (4, 4, 3, 8, 8)]
    assert tracked == [True, False, False, True, False]
    reading = meter.read("train", {"policy": {"weights": MIB}})
    assert reading.copies["policy"] == {"weights": MIB, "activations": 8 * MIB}


def test_a_peak_belongs_to_its_phase():
    meter, weights = PhaseMeter(), torch.zeros(MIB // 4)
    work(meter, "logprobs", 4, weights)
    held = {"policy": {"weights": MIB}}
    assert meter.read("logprobs", held).copies["policy"]["activations"] == 4 * MIB
    assert "activations" not in meter.read("train", held).copies["policy"]
    # in a later round a smaller batch is not tracked: the largest of the run stands
    work(meter, "logprobs", 2, weights)
    assert meter.read("logprobs", held).copies["policy"]["activations"] == 4 * MIB


def test_work_that_is_done_in_another_phase_counts_there_and_once():
    """As a judge of slices: it has judged all of them before it is asked how `generate` ended."""
    meter, weights = PhaseMeter(), torch.zeros(MIB // 4)
    held = {"policy": {"weights": MIB}}
    for _ in range(3):
        work(meter, "judge", 4, weights)
    reading = meter.read("generate", held, work="judge")
    assert reading.copies["policy"] == {"weights": MIB, "activations": 4 * MIB}
    assert "activations" not in meter.read("judge", held, work="judge").copies["policy"]
    # one call for all, after `generate`
    assert "activations" not in meter.read("generate", held, work="judge").copies["policy"]
    work(meter, "judge", 2, weights)
    assert meter.read("judge", held, work="judge").copies["policy"]["activations"] == 4 * MIB


def test_rows_add_up_to_the_resident_set():
    meter, weights = PhaseMeter(), torch.zeros(MIB // 4)
    reading = meter.read("train", {"policy": {"weights": weights.nbytes}})
    rows = sum(sum(kinds.values()) for kinds in reading.copies.values()) + reading.runtime
    from actors.ledger import resident_peak

    assert reading.runtime > 0
    assert abs(rows / resident_peak() - 1) < 0.02


def test_what_nobody_claims_is_a_row():
    meter = PhaseMeter()
    weights, forgotten = torch.zeros(MIB // 4), torch.zeros(64 * MIB // 4)
    reading = meter.read("train", {"policy": {"weights": weights.nbytes}})
    assert reading.copies["process"]["unattributed"] >= forgotten.nbytes


def test_the_copy_that_adds_most_sets_the_peak():
    meter, weights = PhaseMeter(), torch.zeros(MIB // 4)
    held = {"policy": {"weights": MIB}, "critic": {"weights": MIB}}
    for copy, size in (("policy", 2), ("critic", 4), ("small", 1)):
        with meter.track("train", copy, size, lambda: {"weights": [weights]}, None):
            torch.ones(size * MIB // 4)
    reading = meter.read("train", held)
    assert reading.copies["critic"] == {"weights": MIB, "activations": 4 * MIB}
    assert reading.copies["policy"] == {"weights": MIB} and "small" not in reading.copies


def test_core_seconds_are_the_process_own():
    before = PhaseMeter().read("train", {}).cpu_seconds
    torch.randn(800, 800) @ torch.randn(800, 800)
    assert PhaseMeter().read("train", {}).cpu_seconds > before


def test_a_parked_copy_that_worked_was_alone():
    meter, weights = PhaseMeter(), torch.zeros(MIB // 4)
    work(meter, "logprobs", 4, weights)
    reading = meter.read("logprobs", {}, {"policy": {"weights": MIB}})
    assert reading.alone == {"policy"}
    assert reading.copies["policy"] == {"weights": MIB, "activations": 4 * MIB}
    assert reading.parked == {"policy": {"weights": MIB}}
    idle = meter.read("train", {}, {"policy": {"weights": MIB}})
    assert not idle.alone and "policy" not in idle.copies


def test_a_copy_that_came_and_went_within_the_phase_is_counted():
    meter, weights = PhaseMeter(), torch.zeros(MIB // 4)
    work(meter, "logprobs", 4, weights)
    assert meter.read("logprobs", {}).copies["policy"]["weights"] == MIB


def test_offloaded_kinds_stay_out_of_the_device():
    meter, weights, states = PhaseMeter(), torch.zeros(MIB // 4), torch.zeros(MIB // 2)
    held = {"weights": [weights], "optimizer": [states]}
    with meter.track("train", "policy", 1, lambda: held, None):
        torch.ones(10)
    reading = meter.read(
        "train", {"policy": {"weights": MIB}}, {"policy": {"optimizer": states.nbytes}}
    )
    assert "optimizer" not in reading.copies["policy"] and not reading.alone


def test_what_left_within_the_phase_was_there():
    meter = PhaseMeter()
    meter.note("engine", {"weights": MIB})
    meter.note("engine", {"weights": MIB, "kv_cache": 3 * MIB})
    parked = {"engine": {"weights": MIB}}
    reading = meter.read("generate", {"engine": {"packed_weights": 2 * MIB}}, parked)
    assert reading.copies["engine"] == {
        "weights": MIB,
        "kv_cache": 3 * MIB,
        "packed_weights": 2 * MIB,
    }
    assert reading.parked == parked and not reading.alone
    # and is not there in the next
    after = meter.read("train", {"engine": {"packed_weights": 2 * MIB}}, parked)
    assert after.copies["engine"] == {"packed_weights": 2 * MIB}


def test_a_gpus_allocator_counts_what_is_unmapped_and_the_ledger_does_not(monkeypatch):
    # An engine of 4 and a cache of 2; beside them 1 of activations; 8 reserved; the context is 3.
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7 * MIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 8 * MIB)
    away = {"engine": {"weights": 4 * MIB, "kv_cache": 2 * MIB}}
    parked = {"engine": {"weights": 4 * MIB}}
    # At the phase's end the driver sees the context, the activations and the slack.
    monkeypatch.setattr(ledger, "_nvml_bytes", lambda: 5 * MIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 8 * MIB)
    slept = ledger._on_gpu({}, parked, away, {})
    assert slept.copies["process"] == {"unattributed": MIB, "allocator_slack": MIB}
    assert slept.runtime == 3 * MIB
    # It woke within the phase and sleeps again.
    woke = ledger._on_gpu({"engine": dict(away["engine"])}, parked, away, away)
    assert woke.copies["process"] == {"unattributed": MIB, "allocator_slack": MIB}
    assert woke.runtime == 3 * MIB


@pytest.fixture
def card(monkeypatch):
    """A card's numbers: at most 100 allocated and 120 reserved, of which 50 still are; the driver
    counts 53.
    """
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 100 * MIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 120 * MIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 50 * MIB)
    monkeypatch.setattr(ledger, "_nvml_bytes", lambda: 53 * MIB)


def test_what_copies_claim_is_held_against_the_allocator(card):
    # 70 + 24 are claimed; the tracked activations stay what they are.
    copies = {"policy": {"weights": 70 * MIB, "activations": 24 * MIB}}
    reading = ledger._on_gpu(copies, {}, {}, {})
    assert reading.copies == {
        "policy": {"weights": 70 * MIB, "activations": 24 * MIB},
        "process": {"unattributed": 6 * MIB, "allocator_slack": 20 * MIB},
    }
    assert reading.runtime == 3 * MIB  # against what is reserved now, not at the peak
    # Who claims too much is seen, too: rows still add up to the allocator's maximum.
    reading = ledger._on_gpu({"policy": {"weights": 104 * MIB}}, {}, {}, {})
    assert reading.copies["process"]["unattributed"] == -4 * MIB


def test_a_process_that_the_driver_does_not_list_is_unknown(card, monkeypatch):
    class NVMLError(Exception):
        pass

    listed = [SimpleNamespace(pid=-1, usedGpuMemory=9 * MIB)]
    pynvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: listed,
    )
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="u")
    )
    for name in ("max_memory_allocated", "max_memory_reserved", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda: 4 * MIB)
    assert ledger._on_gpu({}, {}, {}, {}).runtime is None
    listed.append(SimpleNamespace(pid=os.getpid(), usedGpuMemory=7 * MIB))
    assert ledger._on_gpu({}, {}, {}, {}).runtime == 3 * MIB

    def fails() -> None:
        raise NVMLError

    pynvml.nvmlInit = fails
    assert ledger._on_gpu({}, {}, {}, {}).runtime is None
