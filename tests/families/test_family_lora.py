"""Adapters on every family: a step of every method, and a reference that is the base."""

from __future__ import annotations

import numpy as np
import pytest

from actors.reference import ReferenceActor
from tests.families.builders import BUILDERS
from tests.families.steps import TOWER_LEFT_OUT, changed, response, state, step
from trainers.config import DPOConfig, NSFTConfig, PPOConfig
from trainers.registry import make_method

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(900)]
FAST = (("qwen2_5_vl", False),)
CASES = [
    pytest.param(family, vision, marks=() if (family, vision) in FAST else (pytest.mark.slow,))
    for family in BUILDERS
    for vision in (False, True)
]
RANK = 4


def adapters_of(actor) -> set[str]:
    """Names of B of every adapter that a loss reaches: A has no gradient while B is zero."""
    names = {name for name in state(actor) if ".lora_B." in name}
    return {name for name in names if not any(part in name for part in TOWER_LEFT_OUT)}


def require_moved(actor, before, *others: str) -> None:
    """All adapters moved, and of the rest `others` alone."""
    moved = changed(actor, before)
    assert adapters_of(actor) | {*others} <= moved
    assert {name for name in moved if ".lora_" not in name} == {*others}


def largest_gap(left, right) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(("family", "vision"), CASES)
def test_adapters_learn_by_every_method(train_actor, spec, processing_of, prompts, family, vision):
    actor, processing = train_actor, processing_of(family)
    adapted = {"lora_rank": RANK, "lora_vision": vision}
    groups = [
        tuple(
            response(
                processing, sample, length, f"{sample.id}-{length}", margin=1.0, score=float(length)
            )
            for length in (4, 7)
        )
        for sample in prompts
    ]
    rows = [row for group in groups for row in group]
    reference = ReferenceActor()
    reference.load(spec(family, "reference"))
    base = reference.score_rows(rows)
    for row, values in zip(rows, base, strict=True):
        row.tokens |= {"ref_logprobs": values, "old_logprobs": values}

    actor.load(spec(family, **adapted))
    before = state(actor)
    metrics = actor.train(groups, make_method(DPOConfig(warmup_steps=0)), step(), seed=0)
    assert metrics["first/loss"] == pytest.approx(np.log(2.0), abs=1e-4)
    require_moved(actor, before)
    assert largest_gap(actor.score_rows(rows), base) > 1e-3
    # switched off, the policy is its own reference
    assert largest_gap(actor.score_rows(rows, adapters=False), base) < 1e-5

    actor.load(spec(family, **adapted))
    chosen = [(response(processing, s, 5, s.id, correction=0.0),) for s in prompts]
    before = state(actor)
    actor.train(chosen, make_method(NSFTConfig(warmup_steps=0)), step(), seed=0)
    require_moved(actor, before)

    method = make_method(PPOConfig(warmup_steps=0, critic_epochs=2, critic_minibatch_size=16))
    single = [(row,) for row in rows]
    for row in rows:
        row.tokens["old_values"] = np.zeros_like(row.tokens["old_logprobs"])
    method.prepare(single)
    learned = []
    for shared in (False, True):
        actor.load(spec(family, **adapted))
        before = state(actor)
        if shared:
            actor.load_tenant(spec(family, "critic", **adapted))
        metrics = actor.train(single, method, method.optimisation("policy"), seed=0)
        assert metrics["first/policy/ratio"] == pytest.approx(1.0, abs=1e-5)
        require_moved(actor, before)
        policy = state(actor)
        if shared:
            critic = actor._tenant
        else:
            actor.load(spec(family, "critic", **adapted))
            critic = actor
        start = state(critic)
        # The first step moves the head, the second the adapters behind it.
        critic.train(single, method, method.optimisation("critic"), seed=0)
        require_moved(critic, start, "head.weight")
        learned.append(critic.score_rows(rows))
        if shared:
            assert not changed(actor, policy)
    # A base of its own or the policy's: the same critic.
    assert largest_gap(*learned) < 1e-6
