"""`benchmarks.tax`: the raw calls' time is neither the round's nor its phase's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks import tax
from benchmarks.figures import summary
from benchmarks.tax import Aside, Watched
from cluster.session import Clock


class Time:
    """Passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def passed(monkeypatch):
    made = Time()
    monkeypatch.setattr("time.perf_counter", made)
    monkeypatch.setattr(Watched, "_all_cpu", lambda self: 2 * made.now)
    return made


class Raw(Watched):
    """Raw calls of 8 s beside rollouts and of 6 s beside steps, of which nothing is the round's."""

    def _answers_and_judgements(self, samples, judged):
        self._judged = judged
        for name, seconds in {"generate": 2.0, "bare_loop": 4.0, "judge": 2.0}.items():
            self._spend(name, seconds, tokens=8.0)

    def _scores_and_steps(self, groups, number):
        self._spend("train", 3.0)

    def _weights(self):
        for name in ("sync", "copy_in_memory", "copy_between_processes"):
            self._spend(name, 1.0, bytes=8.0)

    def _spend(self, name, seconds, **others):
        tax.time.perf_counter.spend(seconds)
        timed = {"seconds": seconds, "cpu_seconds": 2 * seconds, **others}
        self._raw.setdefault(name, []).append(timed)


def test_a_round_is_its_phases_without_what_was_done_aside(passed, monkeypatch):
    arm = SimpleNamespace(clock=Clock())

    class Source:
        def collect(self, number):
            with arm.clock.phase("generate"):
                passed.spend(2.5)
            with arm.clock.phase("judge"):
                passed.spend(2.0)
            rollout = SimpleNamespace(token_ids=(1, 2, 3, 4))
            return {"s": None}, [SimpleNamespace(rollout=rollout)] * 2

    monkeypatch.setattr(tax, "original_train_copies", lambda *_: passed.spend(3.5) or {"loss": 1.0})
    watched = Raw(None, arm, Source())
    for number in (1, 2, 3):
        watched.collect(number)
        with arm.clock.phase("train"):
            assert watched.train_copies(None, arm, [], number) == {"loss": 1.0}
        with arm.clock.phase("sync"):
            passed.spend(1.5)
        passed.spend(0.25)
    watched.collect(4)  # ends the third
    assert [one["round"] for one in watched.rounds] == [1, 2, 3]
    found = summary(watched.rounds[1:])
    assert found["phase_seconds"] == {"generate": 2.5, "judge": 2.0, "train": 3.5, "sync": 1.5}
    assert found["round_seconds"] == 9.75 and found["outside_phases_seconds"] == 0.25
    assert found["tax"] == 9.75 / 8 == found["cpu_tax"]  # raw: 2 + 2 + 3 + 1
    assert found["rollout_throughput_ratio"] == (8 / 2.5) / (8 / 4)


def test_a_round_without_steps_takes_nothing_from_its_phases(passed):
    """The step before is not taken out of a round that had none."""
    arm = SimpleNamespace(clock=Clock())
    source = SimpleNamespace(collect=lambda number: ({}, []))
    watched = Raw(None, arm, source)
    watched.collect(1)
    with arm.clock.phase("train"), Aside(watched):
        passed.spend(2.0)
    watched._in_train = 2.0
    watched.collect(2)
    with arm.clock.phase("train"):
        passed.spend(1.0)
    watched.collect(3)
    assert [one["phases"] for one in watched.rounds] == [{"train": 0.0}, {"train": 1.0}]
