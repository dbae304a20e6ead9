"""Engines that sleep while others work: equal results, and a ledger as the planner says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.config import RunConfig
from cluster.config_text import validate
from trainers.ledger import PHASES, LedgerRow, phase_bytes, read_rows

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.deepspeed,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

KV_CACHE_MIB = 32
ENGINES = ("rollout_engine", "judge_engine")
LEAVING = {"weights", "kv_cache"}


@pytest.fixture(scope="module")
def judge(tiny_model, tmp_path_factory) -> str:
    """A critique model that has learnt nothing."""
    from actors.modules import load_reward_module, save_score_head

    folder = tmp_path_factory.mktemp("judges") / "judge"
    shutil.copytree(tiny_model, folder)
    settings = {"request": "find the mistakes", "max_critique_tokens": 12}
    save_score_head(load_reward_module(folder), folder, settings)
    return str(folder)


@pytest.fixture(scope="module")
def train(stack, tiny_model, judge):
    """`train(sleep=…, time_slice=…)`: a short run of PPO; its result, ledger and folder."""

    def run_once(*, sleep: bool, time_slice: bool = False) -> tuple[Any, list[LedgerRow], Path]:
        from cluster import run
        from trainers.comparison import load

        output = stack.root / f"sleep-{sleep}-{time_slice}"
        values = {
            "output": str(output),
            "rounds": 2,
            "model": tiny_model,
            "judge": judge,
            "judge_check": {"min_accuracy": 0.0},  # it was never trained
            "method": {"name": "ppo", "minibatch_size": 8, "learning_rate": 1e-2},
            "rollout": {
                "num_prompts": 6,
                "num_rollouts_per_prompt": 4,
                "max_tokens": 24,
                "kv_cache_mib": KV_CACHE_MIB,
                "sleep": sleep,
            },
            "train": {"parity_rollouts": 6, "time_slice": time_slice},
            "eval": {"num_scenes": 2, "num_curve_scenes": 2},
            "num_threads": 1,
        }
        assert run.train(validate(RunConfig, values)) == 0
        (folder,) = output.iterdir()
        result = load(folder / "compare.json").methods["ppo"]
        assert result.failure is None
        return result, read_rows(folder / "memory" / "ledger.jsonl"), folder

    return run_once


@pytest.fixture(scope="module")
def awake(train):
    return train(sleep=False)


@pytest.fixture(scope="module")
def asleep(train):
    return train(sleep=True)


def engine_kinds(rows: list[LedgerRow], place: str) -> dict[tuple[str, str], set[str]]:
    """(phase, engine) -> what of it, that could leave, was in `place`."""
    found: dict[tuple[str, str], set[str]] = {(p, e): set() for p in PHASES for e in ENGINES}
    for row in rows:
        if row.copy in ENGINES and row.place == place and row.kind in LEAVING:
            found[row.phase, row.copy].add(row.kind)
    return found


def same_to_the_digit(one: Any, other: Any) -> None:
    assert one.metrics == other.metrics
    for a, b in zip(one.curve, other.curve, strict=True):
        assert (a.score, a.loss, a.kl, a.parity) == (b.score, b.loss, b.kl, b.parity)
        timed = {key for key in a.extra if "seconds" in key}
        assert {k: v for k, v in a.extra.items() if k not in timed} == {
            k: v for k, v in b.extra.items() if k not in timed
        }


def test_sleep_changes_nothing_but_memory(awake, asleep):
    same_to_the_digit(awake[0], asleep[0])
    weights = [
        (folder / "final" / "model.safetensors").read_bytes() for *_, folder in (awake, asleep)
    ]
    assert weights[0] == weights[1]
    before, after = (phase_bytes(rows) for _, rows, _ in (awake, asleep))
    for phase in ("logprobs", "train"):  # two KV caches are gone
        assert before[phase] - after[phase] > 2 * 0.9 * KV_CACHE_MIB * 2**20
    assert asleep[0].memory.moved_bytes > 0 == awake[0].memory.moved_bytes
    assert asleep[0].memory.moving_seconds > 0 == awake[0].memory.moving_seconds


def test_an_engine_is_on_the_device_in_its_own_phases_only(asleep):
    device, host = (engine_kinds(asleep[1], place) for place in ("device", "host"))
    for (phase, engine), kinds in device.items():
        expected: set[str] = set()
        if (phase, engine) in (("generate", "rollout_engine"), ("judge", "judge_engine")):
            expected = LEAVING
        if (phase, engine) == ("sync", "rollout_engine"):
            expected = {"weights"}  # staged: no answer has been asked for
        assert kinds == expected, (phase, engine)
        assert host[phase, engine] == {"weights"}  # at the phase's end


def test_the_planner_says_the_same(asleep, tiny_model):
    from cluster.planner.architectures import load_architecture
    from cluster.planner.gpus import find_gpu
    from cluster.planner.plan import Planner, Settings
    from trainers.config import PPOConfig
    from trainers.registry import make_method

    planner = Planner(load_architecture(tiny_model), find_gpu("h100"))
    settings = Settings(zero_stage=0, micro_batch_size=1, response_tokens=24, sleep=True)
    phases = planner.plan(make_method(PPOConfig()), settings, 1).phases
    planned = {
        (phase, engine): LEAVING & set(phases[phase].get(engine, {}))
        for phase in PHASES
        for engine in ENGINES
    }
    assert planned == engine_kinds(asleep[1], "device")


@pytest.mark.slow
def test_engines_and_copies_that_both_take_turns(awake, train):
    result, rows, _ = train(sleep=True, time_slice=True)
    same_to_the_digit(awake[0], result)
    parked = {row.copy for row in rows if row.phase == "train" and row.place == "host"}
    assert {"policy", "critic", "reference", "reward", *ENGINES} <= parked
