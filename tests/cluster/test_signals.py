"""Who computes a signal, and who waits for whom; processes are stood in for."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster import signals
from cluster.signals import attach_signals
from trainers.dpo import DPO
from trainers.ppo import PPO

NUMBERS = {"policy": 1.0, "reference": 2.0, "critic": 3.0, "policy, no adapters": 4.0}


class Processes:
    """One role's; says into `log` what was begun and finished."""

    def __init__(self, role: str, log: list[str]):
        self.role, self.log = role, log

    def begin_rows(self, name: str, rows: Any, adapters: bool) -> list[str]:
        self.log.append(f"begin {self.role}")
        return [self.role if adapters else f"{self.role}, no adapters"]

    def finish_rows(self, asked: list[str], number: int) -> list[np.ndarray]:
        self.log.append(f"finish {self.role}")
        return [np.full(2, NUMBERS[asked[0]])] * number

    def begin(self, name: str, rows: Any) -> int:
        self.log.append(f"begin {self.role}")
        return len(rows)

    def finish(self, begun: int, limit: str) -> list[np.ndarray]:
        return self.finish_rows([self.role], begun)


class Session:
    def __init__(self, sharing: set[str]):
        self.sharing = sharing
        self.log: list[str] = []

    def shares(self, role: str) -> bool:
        return role in self.sharing

    def trainer(self, role: str) -> Processes:
        return Processes(role, self.log)

    served = trainer

    def unload(self, role: str) -> None:
        self.log.append(f"unload {role}")


def attached(
    monkeypatch: Any,
    kind: Any,
    sharing: set[str],
    reference: str = "own_copy",
    slices: bool = False,
) -> tuple[list[str], dict[str, float]]:
    """What was done in which order, and the signals of a row."""
    train = SimpleNamespace(reference=reference, time_slice=False)
    method = SimpleNamespace(signals=kind.signals, refreshed=())
    arm: Any = SimpleNamespace(method=method, config=SimpleNamespace(train=train))
    session: Any = Session(sharing)
    monkeypatch.setattr(signals, "at_work", lambda *_: nullcontext())
    monkeypatch.setattr(signals, "load_reference", lambda *_: session.log.append("load reference"))
    rows = [SimpleNamespace(greedy=False, tokens={}) for _ in range(3)]
    attach_signals(session, arm, rows)
    assert all(len(row.tokens) == len(kind.signals) for row in rows)
    return session.log, {name: float(values[0]) for name, values in rows[2].tokens.items()}


def test_copies_on_gpus_of_their_own_compute_at_the_same_time(monkeypatch):
    log, found = attached(monkeypatch, PPO, set())
    assert log[:3] == ["begin policy", "begin reference", "begin critic"]
    assert sorted(log[3:]) == ["finish critic", "finish policy", "finish reference"]
    assert found == {"old_logprobs": 1.0, "ref_logprobs": 2.0, "old_values": 3.0}


def test_copies_that_share_a_gpu_take_turns(monkeypatch):
    log, found = attached(monkeypatch, PPO, {"policy", "reference", "critic"})
    turns = [(f"begin {role}", f"finish {role}") for role in ("policy", "reference", "critic")]
    assert log == [step for turn in turns for step in turn]
    assert found == {"old_logprobs": 1.0, "ref_logprobs": 2.0, "old_values": 3.0}


def test_who_has_its_own_gpu_works_beside_those_that_take_turns(monkeypatch):
    log, _ = attached(monkeypatch, PPO, {"policy", "reference"})
    assert log[0] == "begin critic" and log[1:3] == ["begin policy", "finish policy"]


@pytest.mark.parametrize(
    ("reference", "expected", "value"),
    [
        ("own_copy", ["begin reference", "finish reference"], 2.0),
        (
            "cached",
            ["load reference", "begin reference", "finish reference", "unload reference"],
            2.0,
        ),
        ("adapter_off", ["begin policy", "finish policy"], 4.0),
    ],
)
@pytest.mark.parametrize("sharing", [set(), {"policy", "reference"}])
def test_where_the_reference_is(monkeypatch, reference, expected, value, sharing):
    log, found = attached(monkeypatch, DPO, sharing, reference)
    assert log == expected and found == {"ref_logprobs": value}


def test_a_reference_that_waits_on_the_host_takes_its_turn(monkeypatch):
    log, _ = attached(monkeypatch, PPO, set(), "on_host")
    assert log[:2] == ["begin policy", "begin critic"]
    assert log.index("begin reference") > log.index("finish policy")
