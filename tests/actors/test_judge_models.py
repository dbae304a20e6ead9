"""What a composed judge says of the models inside it, by hand."""

from __future__ import annotations

import torch

from actors import judges
from actors.engine import EngineSpec
from actors.judge_models import JUDGING, HostedJudge, ModelJudge
from actors.ledger import PhaseMeter
from rewards.base import Judgement
from rewards.config import CritiqueConfig


class Memory:
    """An engine's memory of so many bytes, on the device or asleep."""

    def __init__(self, weights: int):
        self.weights, self.awake = weights, True

    def on_device(self):
        return {"weights": self.weights, "kv_cache": 5} if self.awake else {}

    def in_host(self):
        return {} if self.awake else {"weights": self.weights}

    def everywhere(self):
        return self.on_device() | self.in_host()

    def unmapped(self):
        return {}


class FakeEngine:
    def __init__(self, weights: int):
        self.memory, self.closed = Memory(weights), 0

    def sleep(self) -> int:
        self.memory.awake = False
        return self.memory.weights

    def wake_up(self) -> int:
        self.memory.awake = True
        return self.memory.weights

    def close(self) -> None:
        self.closed += 1


class Scoring(ModelJudge):
    """A part with one engine and a scoring module of 100 bytes that can be parked."""

    name = "scoring"

    def __init__(self, weights: int):
        self.engines, self.meter, self.away = [FakeEngine(weights)], PhaseMeter(), False

    def judge(self, items):
        return [Judgement(score=1.0) for _ in items]

    def module_memory(self):
        return {"weights": 100}

    @property
    def parked(self):
        return self.away

    def park(self) -> int:
        self.away = True
        return 100

    def wake(self) -> int:
        self.away = False
        return 100


def hosted():
    part, engine = Scoring(10), FakeEngine(20)
    return HostedJudge(part, [engine], [part]), part, engine


def test_all_engines_are_one_row_and_all_modules_another():
    judge, *_ = hosted()
    assert judge.memory() == {
        "reward": {"weights": 100},
        "judge_engine": {"weights": 30, "kv_cache": 10},
    }


def test_they_sleep_wake_and_end_together():
    judge, part, engine = hosted()
    assert judge.sleep() == 30 and not engine.memory.awake
    assert judge.memory()["judge_engine"] == {"weights": 30}
    assert judge.wake_up() == 30 and part.engines[0].memory.awake
    judge.close()
    assert engine.closed == part.engines[0].closed == 1


def test_parts_park_together_and_measure_as_one():
    judge, part, _ = hosted()
    assert part.meter is judge.meter
    assert judge.park() == 100 and judge.parked
    reading = judge.end_phase("train")
    assert "reward" not in reading.copies and reading.parked["reward"] == {"weights": 100}
    assert judge.wake() == 100
    assert judge.end_phase("judge").copies["reward"]["weights"] == 100


def test_slices_that_are_judged_while_the_engine_answers_count_to_generate():
    """All of them are judged before the question how `generate` ended is answered."""
    judge, part, _ = hosted()
    with part.meter.track(JUDGING, "reward", 1, lambda: {"weights": []}, None):
        torch.ones(1000)
    assert judge.end_phase("generate").copies["reward"] == {"weights": 100, "activations": 4000}
    assert judge.end_phase("judge").copies["reward"] == {"weights": 100}


def test_a_judge_over_engines_alone_has_no_module():
    judge = HostedJudge(Scoring(1), [FakeEngine(20)])
    assert judge.memory() == {"judge_engine": {"weights": 20, "kv_cache": 5}}
    assert not judge.parked and judge.park() == judge.wake() == 0


def test_a_scoring_model_takes_the_micro_batchs_rows(monkeypatch):
    made = {}
    monkeypatch.setattr(judges, "CritiqueJudge", lambda spec, **given: made.update(given))
    engine = EngineSpec(model_dir="policy", image_root="images")
    maker = judges.JudgeMaker(engine, max_tokens=8, seed=0, micro_batch_size=5)
    maker._critique(CritiqueConfig(model="reward"))
    assert made["batch_size"] == 5
