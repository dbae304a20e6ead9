"""A step of every method on every family: what is learned, what is not, and from which start."""

from __future__ import annotations

import numpy as np
import pytest

from actors.parts import parameters_by_part
from tests.families.builders import BUILDERS
from tests.families.steps import TOWER_LEFT_OUT, changed, response, state, step
from trainers.batch import Row
from trainers.config import DPOConfig, NSFTConfig, PPOConfig
from trainers.data.records import Turn
from trainers.registry import make_method

pytestmark = pytest.mark.deepspeed
FAST = ("llava", "qwen2_5_vl")
FAMILIES = [
    pytest.param(family, marks=() if family in FAST else (pytest.mark.slow,)) for family in BUILDERS
]


@pytest.fixture(scope="module")
def actor(train_actor):
    return train_actor


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ppo_step_with_a_critic_that_sees(actor, spec, processing_of, prompts, family, record):
    processing = processing_of(family)
    method = make_method(PPOConfig(warmup_steps=0, critic_epochs=2, critic_minibatch_size=8))
    groups = [
        (response(processing, sample, 3 + index, sample.id, score=index - 2.0),)
        for index, sample in enumerate(prompts)
    ]
    rows = [row for (row,) in groups]
    actor.load(spec(family, "critic"))
    blind = actor.score_rows(rows)
    before = state(actor)
    for row, values in zip(rows, blind, strict=True):
        assert not values.any()  # the head starts at zero
        row.tokens["old_values"] = values
    actor.load(spec(family))
    padded, alone = actor.score_rows(rows), actor.score_rows(rows, batch_size=1)
    gap = max(float(np.abs(one - other).max()) for one, other in zip(padded, alone, strict=True))
    assert gap < 1e-5  # padding, and whose images stand beside, do not matter
    for row, values in zip(rows, padded, strict=True):
        row.tokens |= {"old_logprobs": values, "ref_logprobs": values}
    metrics = method.prepare(groups)
    assert metrics["objective/kl"] == 0.0
    metrics |= actor.train(groups, method, method.optimisation("policy"), seed=0)
    assert metrics["first/policy/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["first/policy/clipfrac"] == 0.0
    record(family, "padding", gap)
    record(family, "PPO", abs(metrics["first/policy/ratio"] - 1.0))

    actor.load(spec(family, "critic"))
    # The first step moves the head, the second what is behind it.
    actor.train(groups, method, method.optimisation("critic"), seed=0)
    moved = changed(actor, before)
    parts = parameters_by_part(actor._engine.module.vlm)
    names = {id(tensor): name for name, tensor in actor._engine.module.named_parameters()}
    assert "head.weight" in moved
    for part, tensors in parts.items():
        reached = {names[id(tensor)] for tensor in tensors}
        # Of the tower every layer that is read; of the rest everything.
        missed = {n for n in reached - moved if not any(out in n for out in TOWER_LEFT_OUT)}
        assert not missed, f"{part}: {sorted(missed)[:4]}"
    # and it sees: another image, other values
    seen = actor.score_rows(rows[:1])[0]
    rows[0].images = rows[1].images
    assert not np.allclose(seen, actor.score_rows(rows[:1])[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dpo_step(actor, spec, processing_of, prompts, family, record):
    processing = processing_of(family)
    actor.load(spec(family))
    groups = [
        tuple(
            response(processing, sample, length, f"{sample.id}-{length}", margin=1.0)
            for length in (4, 7)
        )
        for sample in prompts
    ]
    rows = [row for group in groups for row in group]
    for row, values in zip(rows, actor.score_rows(rows), strict=True):
        row.tokens["ref_logprobs"] = values
    method = make_method(DPOConfig(warmup_steps=0))
    before = state(actor)
    metrics = actor.train(groups, method, step(), seed=0)
    # -log sigmoid(0): the policy is its own reference
    assert metrics["first/loss"] == pytest.approx(np.log(2.0), abs=1e-4)
    assert any("embed" in name for name in changed(actor, before))
    again = actor.train(groups, method, step(epochs=3), seed=1)
    assert again["loss"] < metrics["loss"]
    record(family, "DPO", abs(metrics["first/loss"] - float(np.log(2.0))))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_nsft_step(actor, spec, processing_of, prompts, family, record):
    processing = processing_of(family)
    actor.load(spec(family))
    asked = (
        Turn(role="user", text="Is there a red circle?", num_images=1),
        Turn(role="assistant", text="No."),
        Turn(role="user", text="What do you see?"),
        Turn(role="assistant", text="a blue square"),
    )
    groups = [
        (
            response(processing, sample, 5, sample.id, correction=0.0),
            Row(
                id=f"{sample.id}-correction",
                prompt=(),
                images=sample.images[:1],
                turns=asked,
                scalars={"correction": 1.0},
            ),
        )
        for sample in prompts
        if sample.images
    ]
    method = make_method(NSFTConfig(warmup_steps=0))
    first = actor.train(groups, method, step(), seed=0)
    later = actor.train(groups, method, step(epochs=4), seed=1)
    assert np.isfinite(first["loss"]) and later["loss"] < first["loss"]
    record(family, "nSFT", first["loss"] - later["loss"])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_part_can_be_frozen(actor, spec, processing_of, prompts, family):
    processing = processing_of(family)
    groups = [(response(processing, sample, 5, sample.id, correction=0.0),) for sample in prompts]
    method = make_method(NSFTConfig(warmup_steps=0))
    for frozen in (("vision",), ("projector", "language")):
        actor.load(spec(family, frozen=frozen))
        before = state(actor)
        names = {id(tensor): name for name, tensor in actor._engine.module.named_parameters()}
        actor.train(groups, method, step(), seed=0)
        moved = changed(actor, before)
        for part, tensors in parameters_by_part(actor._engine.module.vlm).items():
            held = {names[id(tensor)] for tensor in tensors}
            assert held, part
            assert bool(held & moved) == (part not in frozen), part


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_does_not_change_the_step(actor, spec, processing_of, prompts, family):
    processing = processing_of(family)
    groups = [(response(processing, sample, 5, sample.id, correction=0.0),) for sample in prompts]
    method = make_method(NSFTConfig(warmup_steps=0))
    losses = []
    for checkpointing in (False, True):
        actor.load(spec(family, gradient_checkpointing=checkpointing))
        losses.append(actor.train(groups, method, step(epochs=2), seed=0)["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_with_float32_masters_trains(actor, spec, processing_of, prompts, family):
    processing = processing_of(family)
    groups = [(response(processing, sample, 5, sample.id, correction=0.0),) for sample in prompts]
    method = make_method(NSFTConfig(warmup_steps=0))
    actor.load(spec(family))
    exact = actor.train(groups, method, step(), seed=0)
    actor.load(spec(family, bf16=True))
    first = actor.train(groups, method, step(), seed=0)
    # bf16 keeps 8 bits: 0.4 % a number, of which some errors add up.
    assert first["loss"] == pytest.approx(exact["loss"], rel=0.02)
    later = actor.train(groups, method, step(epochs=4), seed=1)
    assert later["loss"] < first["loss"]
    assert actor.memory()["masters"] == 2 * sum(
        2 * p.numel() for p in actor._engine.module.parameters() if p.requires_grad
    )
