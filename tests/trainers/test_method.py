"""What methods have in common: declared copies, no training on failures, settings to method."""

from __future__ import annotations

import pickle
import random
from typing import get_args

import pytest

from trainers.config import MethodConfig
from trainers.data.records import Finding
from trainers.registry import make_method
from trainers.roles import copies_in_loop, copies_in_training
from trainers.schedule import learning_rate_factor

CONFIGS = {config().name: config() for config in get_args(MethodConfig)}
POLICY = ["policy"]
TWO = ["policy", "reference"]


@pytest.mark.parametrize(
    ("name", "training", "loop"),
    [
        ("ppo", ["policy", "critic", "reference", "reward"], ["rollout_engine"]),
        ("grpo", ["policy", "reference", "reward"], ["rollout_engine"]),
        ("dpo", TWO, ["rollout_engine", "judge"]),
        ("rpo", TWO, ["rollout_engine", "judge"]),
        ("selm", TWO, ["rollout_engine", "judge"]),
        ("simpo", POLICY, ["rollout_engine", "judge"]),
        ("nsft", POLICY, ["rollout_engine", "judge"]),
        ("sft", POLICY, ["rollout_engine", "judge"]),
        ("rejection", POLICY, ["rollout_engine", "judge"]),
        ("reward_weighted", POLICY, ["rollout_engine", "judge"]),
        ("steerlm", POLICY, ["rollout_engine", "judge"]),
        ("povid", TWO, ["rollout_engine", "judge"]),
        ("sapo", TWO, ["rollout_engine", "judge"]),
    ],
)
def test_copies(name, training, loop):
    method = make_method(CONFIGS[name])
    assert method.name == name
    assert list(copies_in_training(method.copies)) == training
    assert list(copies_in_loop(method.copies)) == [*training, *loop]
    assert method.trained == (("policy", "critic") if name == "ppo" else ("policy",))


def test_every_method_is_declared_above_and_on_the_command_line():
    from cluster.method_names import METHOD_NAMES

    (declared,) = (mark for mark in test_copies.pytestmark if mark.name == "parametrize")
    assert {name for name, *_ in declared.args[1]} == set(CONFIGS) == set(METHOD_NAMES)


@pytest.mark.parametrize("name", CONFIGS)
def test_signals_come_from_declared_copies(name):
    method = make_method(CONFIGS[name])
    declared = {copy.role for copy in method.copies}
    assert {signal.role for signal in method.signals} <= declared
    assert set(method.refreshed) <= declared - set(method.trained)


@pytest.mark.parametrize("name", CONFIGS)
def test_failures_are_never_selected(name, samples, make_scored):
    finding = (
        Finding(claim="red circle", verdict="bad"),
        Finding(claim="blue cross", verdict="ok"),
    )
    scored = [
        make_scored(f"{sample.id}/{number}", sample.id, score, findings=finding)
        for sample in samples[:3]
        for number, score in enumerate((None, 1.0, -1.0, None))
    ]
    by_id = {sample.id: sample for sample in samples}
    selection = make_method(CONFIGS[name]).select(scored, by_id, random.Random(0))
    rows = [row for group in selection.groups for row in group]
    ids = {row.id.removesuffix("/correction").removesuffix("/noised") for row in rows}
    assert ids
    assert all(id.endswith(("/1", "/2")) for id in ids)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_round_of_failures_selects_nothing(name, samples, make_scored):
    scored = [make_scored(f"{s.id}/0", s.id, None) for s in samples]
    by_id = {sample.id: sample for sample in samples}
    assert make_method(CONFIGS[name]).select(scored, by_id, random.Random(0)).groups == []


@pytest.mark.parametrize("name", CONFIGS)
def test_methods_travel_between_processes(name):
    assert pickle.loads(pickle.dumps(make_method(CONFIGS[name]))).name == name


def test_learning_rate_by_hand():
    # 3 warm-up steps: 1/4, 2/4, 3/4, then the peak.
    rates = [learning_rate_factor(s, warmup_steps=3, total_steps=None) for s in range(5)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]
    # With a total of 7 the cosine goes through 1/2 in the middle (step 5 of 3..7) and ends at 0.
    cosine = [learning_rate_factor(s, warmup_steps=3, total_steps=7) for s in (3, 5, 7, 9)]
    assert cosine == pytest.approx([1.0, 0.5, 0.0, 0.0])
