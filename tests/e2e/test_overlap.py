"""What is done at the same time gives what is done in turn: slices, and a round early."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster import driver, online
from cluster.config import RunConfig
from cluster.config_text import merge, validate
from cluster.preemption import Preempted
from cluster.resume import resume_train
from tests.e2e.outcomes import differences, outcome
from trainers.data.record_file import read_records
from trainers.data.records import ScoredRollout
from trainers.ledger import PHASES, read_rows

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


def hold(_actor: Any, gate: str) -> None:
    """Keeps an engine busy until there is a file `gate`."""
    while not Path(gate).exists():
        time.sleep(0.01)


@pytest.fixture
def engine_held_back(monkeypatch, tmp_path):
    """`engine_held_back(then)`: what is asked a round early is not answered before the round has
    trained; then `then(number)` says whether it is. Returns what happened, in order.
    """
    events: list[tuple[str, int]] = []

    def hold_back(then: Callable[[int], bool]) -> list[tuple[str, int]]:
        begin_round, train_copies = online.begin_round, driver.train_copies

        def begin(session: Any, arm: Any, samples: Any, number: int) -> Any:
            if number == arm.round + 1:
                (engine,) = session.served("rollout").processes
                engine.handle.__ray_call__.remote(hold, str(tmp_path / f"gate-{number}"))
            events.append(("asked", number))
            return begin_round(session, arm, samples, number)

        def train(session: Any, arm: Any, groups: Any, number: int) -> dict[str, float]:
            found = train_copies(session, arm, groups, number)
            events.append(("trained", number))
            if then(number):
                (tmp_path / f"gate-{number + 1}").touch()
            return found

        monkeypatch.setattr(online, "begin_round", begin)
        monkeypatch.setattr(driver, "train_copies", train)
        return events

    return hold_back


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
def test_a_round_early_is_one_version_behind_and_goes_on_to_the_bit(run, engine_held_back):
    """Nothing of a round's training waits for the next round's answers: they are held back until it
    is done.
    """
    events = engine_held_back(lambda number: True)
    whole = run("whole", overlap={"off_policy_steps": 1}, deadlines={"answer": 60})
    asked_early = [("asked", 2), ("trained", 1), ("asked", 3), ("trained", 2)]
    assert events == [("asked", 1), *asked_early, ("trained", 3)]
    rows = read_rows(whole / "memory" / "ledger.jsonl")
    ends = [(row.round, PHASES.index(row.phase)) for row in rows]
    assert ends == sorted(ends)
    assert set(ends) == {(n, index) for n in (1, 2, 3) for index in range(len(PHASES))}
    keys = [(row.round, row.phase, row.process, row.copy, row.kind, row.place) for row in rows]
    assert len(set(keys)) == len(keys)  # none is entered twice

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
def test_who_dies_a_round_early_changes_nothing(run, stack, monkeypatch):
    """The engine is killed when round 2 has trained; the one that takes over gets the weights of
    its round, not those that the trainer has by then. Or the policy before it trains: the run goes
    back to round 1, and nobody takes what was asked for.
    """
    early = {"overlap": {"off_policy_steps": 1}, "rollout": {"seeds": "answer"}}
    expected = run("whole", **early)
    train_copies = driver.train_copies

    def killing(session: Any, arm: Any, groups: Any, number: int) -> dict[str, float]:
        if number == 2 and victim == "policy" and victim not in died:
            died.append(victim)
            ray.kill(session.trainer("policy").processes[0].handle)
        found = train_copies(session, arm, groups, number)
        if number == 2 and victim == "rollout":
            died.append(victim)
            ray.kill(session.served("rollout").processes[0].handle)
        return found

    monkeypatch.setattr(driver, "train_copies", killing)
    died: list[str] = []
    for victim in ("rollout", "policy"):
        killed = run(victim, **early)
        assert stack.session.restarts[-1] == died[-1] == victim
        for number in (1, 2, 3):
            one, other = judged(expected, number), judged(killed, number)
            assert [a.rollout.token_ids for a in one] == [b.rollout.token_ids for b in other]
            assert {b.rollout.policy_version for b in other} == {max(1, number - 1)}
        name = "final/model.safetensors"
        assert outcome(expected)[name] == outcome(killed)[name]


@pytest.mark.slow
def test_sigterm_keeps_the_trained_round_and_gives_up_the_next_ones_answers(
    run, engine_held_back, tmp_path
):
    """They never come. Round 2 is trained, and in its checkpoint; round 3 answers for itself."""

    def stop(number: int) -> bool:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return number != 2

    events = engine_held_back(stop)
    with pytest.raises(Preempted, match="--resume"):
        run("stopped", overlap={"off_policy_steps": 1})
    (folder,) = (tmp_path / "stopped").iterdir()
    checkpoint = folder / "checkpoints" / "round_000002"
    assert (checkpoint / "state.json").is_file() and not (checkpoint / "ahead.msgpack").exists()
    assert events[-2:] == [("asked", 3), ("trained", 2)]
    assert resume_train(folder, {}) == 0
    assert events[-2:] == [("asked", 3), ("trained", 3)]
    versions = [{item.rollout.policy_version for item in judged(folder, n)} for n in (1, 2, 3)]
    assert versions == [{1}, {1}, {3}]
    lines = metrics(folder)
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert lines[2]["importance/mean"] == pytest.approx(1.0, abs=1e-3)
    assert lines[1]["parity"] is None and lines[2]["parity"] is not None
