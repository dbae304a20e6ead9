"""What is done at the same time gives what is done in turn: slices, and a round early."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.config import RunConfig
from cluster.config_text import merge, validate
from cluster.resume import resume_train
from tests.e2e.outcomes import differences, outcome
from trainers.data.record_file import read_records
from trainers.data.records import ScoredRollout

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.timeout(3600)]

SMALL: dict[str, Any] = {
    "rounds": 3,
    "method": {"name": "ppo", "minibatch_size": 16},
    "judge": "tests.e2e.judge_functions:length",
    "judge_check": {"min_accuracy": 0.0},
    "rollout": {"num_prompts": 7, "num_rollouts_per_prompt": 3, "max_tokens": 12},
    "eval": {"num_scenes": 4, "num_curve_scenes": 3},
    "train": {"parity_rollouts": 3},
    "checkpoint": {"keep": 3},
    "num_threads": 1,
}


@pytest.fixture
def run(stack, tiny_model, tmp_path):
    """Runs a method on a model of random weights; returns the run's folder."""

    def train(name: str, **changes: Any) -> Path:
        from cluster.run import train as train_run

        values = merge({**SMALL, "model": tiny_model, "output": str(tmp_path / name)}, changes)
        assert train_run(validate(RunConfig, values)) == 0
        (folder,) = (tmp_path / name).iterdir()
        return folder

    return train


def judged(folder: Path, number: int) -> list[ScoredRollout]:
    records = read_records(folder / "rounds" / f"round_{number:06d}.msgpack").records
    return [record for record in records if isinstance(record, ScoredRollout)]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_slices_are_judged_once_and_train_the_same(run):
    """With a seed for each answer the slices change nothing that is drawn, so that judgements are
    equal and the trained weights are, to the bit.
    """
    own = {"rollout": {"seeds": "answer"}, "rounds": 2}
    whole = run("whole", **own)
    parts = run("parts", **own, overlap={"judge_slices": 3})
    for number in (1, 2):
        one, other = judged(whole, number), judged(parts, number)
        assert len(one) == 21 and len({item.rollout.id for item in other}) == 21
        for a, b in zip(one, other, strict=True):
            assert (a.rollout.id, a.rollout.token_ids) == (b.rollout.id, b.rollout.token_ids)
            assert (a.score, a.judge) == (b.score, b.judge)
    name = "final/model.safetensors"
    assert outcome(whole)[name] == outcome(parts)[name]
    account = json.loads((parts / "compare.json").read_text())["methods"]["ppo"]["account"]
    assert account["asked"] == account["judged"] == 42 and not account["lost"]


@pytest.mark.slow
def test_a_round_early_is_one_version_behind_and_goes_on_to_the_bit(run):
    whole = run("whole", overlap={"off_policy_steps": 1})
    versions = [{item.rollout.policy_version for item in judged(whole, n)} for n in (1, 2, 3)]
    assert versions == [{1}, {1}, {2}]
    lines = metrics(whole)
    assert lines[0]["importance/mean"] == pytest.approx(1.0, abs=1e-3)  # engine against trainer
    assert lines[1]["importance/mean"] != pytest.approx(1.0, abs=1e-6)
    assert all(line["importance/max"] <= 2.0 for line in lines)
    assert all(abs(line["first/policy/ratio"] - 1) < 1e-3 for line in lines)
    checkpoints = whole / "checkpoints"
    assert (checkpoints / "round_000002" / "ahead.msgpack").is_file()
    assert not (checkpoints / "round_000003" / "ahead.msgpack").exists()  # no round follows

    expected = outcome(whole)
    shutil.rmtree(checkpoints / "round_000003")
    assert resume_train(whole, {}) == 0
    assert differences(expected, outcome(whole)) == []


@pytest.mark.slow
def test_an_engine_that_dies_a_round_early_answers_with_the_old_weights(run, stack, monkeypatch):
    """It is killed while round 2 trains; the one that takes over gets the weights of its round, not
    those that the trainer has by then.
    """
    from cluster import driver

    early = {"overlap": {"off_policy_steps": 1}, "rollout": {"seeds": "answer"}}
    expected = run("whole", **early)
    train_copies = driver.train_copies

    def killing(session: Any, arm: Any, groups: Any, number: int) -> dict[str, float]:
        found = train_copies(session, arm, groups, number)
        if number == 2:
            ray.kill(session.served("rollout").processes[0].handle)
        return found

    monkeypatch.setattr(driver, "train_copies", killing)
    killed = run("killed", **early)
    assert stack.session.restarts[-1] == "rollout"
    for number in (1, 2, 3):
        one, other = judged(expected, number), judged(killed, number)
        assert [a.rollout.token_ids for a in one] == [b.rollout.token_ids for b in other]
        assert {b.rollout.policy_version for b in other} == {max(1, number - 1)}
    name = "final/model.safetensors"
    assert outcome(expected)[name] == outcome(killed)[name]
