"""Training in DeepSpeed: what must not change the step, what memory there is, what is saved."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.batch import Row
from trainers.config import DPOConfig, NSFTConfig, PPOConfig, SFTConfig
from trainers.data.records import Turn
from trainers.method import Optimisation
from trainers.registry import make_method

pytestmark = pytest.mark.deepspeed
LENGTHS = (3, 9, 1, 6, 12, 2, 5, 4)


@pytest.fixture(scope="module")
def actor(train_actor):
    return train_actor


@pytest.fixture
def spec(tiny_model, store):
    from actors.train_spec import TrainSpec

    def make(role: str = "policy", **options) -> TrainSpec:
        return TrainSpec(role=role, model_dir=tiny_model, image_root=str(store.root), **options)

    return make


def optimisation(**options) -> Optimisation:
    defaults = {"learning_rate": 1e-3, "epochs": 1, "minibatch_size": 4}
    return Optimisation(**(defaults | options))


def response(sample, length: int, id: str, **scalars: float) -> Row:
    ids = tuple(random.Random(f"{id}/{length}").choices(range(6, 40), k=length - 1))
    return Row.of_response(sample, (*ids, 1), id, **scalars)


def groups_of(samples, method: str):
    """Eight groups as the method selects them, of very different lengths."""
    groups = []
    for index, (sample, length) in enumerate(zip(samples, LENGTHS, strict=False)):
        if method == "sft":
            groups.append((response(sample, length, f"{index}"),))
        elif method == "dpo":
            pair = (length, LENGTHS[-1 - index])
            rows = tuple(response(sample, n, f"{index}/{n}", margin=1.0) for n in pair)
            for row in rows:
                row.tokens["ref_logprobs"] = np.full(len(row.response_ids), -2.0, np.float32)
            groups.append(rows)
        else:
            turns = (
                Turn(role="user", text="is there a red circle ?", num_images=1),
                Turn(role="assistant", text="no"),
            )
            rows = [response(sample, length, f"{index}", correction=0.0)]
            if index % 3:
                rows.append(
                    Row(
                        id=f"{index}/correction",
                        prompt=(),
                        images=sample.images,
                        turns=turns,
                        scalars={"correction": 1.0},
                    )
                )
            groups.append(tuple(rows))
    return groups


CONFIGS = {"sft": SFTConfig(), "dpo": DPOConfig(), "nsft": NSFTConfig()}


def weights(actor) -> dict[str, Tensor]:
    """All trained weights but key biases: a softmax ignores them, so their gradient is rounding
    noise, which Adam blows up to the size of a step.
    """
    state = actor._engine.module.state_dict()
    return {n: t.clone() for n, t in state.items() if "k_proj.bias" not in n}


def assert_close(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    """Equal after two steps of 1e-3, but for rounding noise of the smallest gradients."""
    assert left.keys() == right.keys()
    gaps = torch.cat([(left[name] - right[name]).abs().flatten() for name in left])
    assert float(gaps.max()) < 3e-4
    assert float((gaps > 1e-5).float().mean()) < 1e-3
    assert float(gaps.mean()) < 1e-7


@pytest.mark.parametrize("name", CONFIGS)
def test_micro_batches_do_not_change_the_step(actor, spec, samples, name):
    results = []
    for size in (2, 16):
        actor.load(spec(micro_batch_size=size))
        metrics = actor.train(
            groups_of(samples, name), make_method(CONFIGS[name]), optimisation(), seed=0
        )
        assert metrics["steps"] == 2
        results.append((weights(actor), metrics["loss"], metrics["first/loss"]))
    assert results[0][1:] == pytest.approx(results[1][1:], abs=1e-5)
    assert_close(results[0][0], results[1][0])


def test_order_inside_a_minibatch_does_not_change_the_step(actor, spec, samples):
    results = []
    for reverse in (False, True):
        actor.load(spec(micro_batch_size=4))
        groups = groups_of(samples, "dpo")
        method, all_at_once = make_method(CONFIGS["dpo"]), optimisation(minibatch_size=8)
        actor.train(groups[::-1] if reverse else groups, method, all_at_once, seed=0)
        results.append(weights(actor))
    assert_close(*results)


def test_first_ratio_is_1_and_kl_of_equals_is_0(actor, spec, samples, tiny_model, store):
    from actors.reference import ReferenceActor

    reference = ReferenceActor()
    reference.load(spec("reference", temperature=0.7))
    actor.load(spec(micro_batch_size=3, temperature=0.7))
    method = make_method(PPOConfig(minibatch_size=4))
    groups = [
        (response(s, n, s.id, score=n - 5.0),) for s, n in zip(samples, LENGTHS, strict=False)
    ]
    rows = [row for (row,) in groups]
    # Other batch sizes than in training: padding must not matter.
    for row, old, ref in zip(
        rows, actor.score_rows(rows, batch_size=8), reference.score_rows(rows), strict=True
    ):
        row.tokens |= {"old_logprobs": old, "ref_logprobs": ref, "old_values": 0 * old}
    metrics = method.prepare(groups)
    assert abs(metrics["objective/kl"]) < 1e-4
    metrics |= actor.train(groups, method, method.optimisation("policy"), seed=0)
    assert metrics["first/policy/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["first/policy/clipfrac"] == 0.0
    assert metrics["policy/ratio"] != pytest.approx(1.0, abs=1e-6)


def test_temperature_and_bans_are_those_of_the_sampler(actor, spec, samples):
    from trainers.data.processing import Processing

    row = response(samples[0], 4, "row")
    actor.load(spec(temperature=1.0))
    module, processing = actor._engine.module, actor.processing
    assert isinstance(processing, Processing)
    encoded = processing.encode("row", row.prompt, row.images, response_ids=row.response_ids)
    with torch.no_grad():
        logits = module.vlm(
            input_ids=torch.from_numpy(encoded.input_ids)[None], **encoded.model_inputs
        ).logits[0, -5:-1]
    for temperature in (1.0, 2.5):
        actor.load(spec(temperature=temperature))
        scaled = logits / temperature
        scaled[:, processing.banned_ids()] = -torch.inf
        expected = scaled.log_softmax(-1).gather(1, torch.tensor(row.response_ids)[:, None])[:, 0]
        np.testing.assert_allclose(actor.score_rows([row])[0], expected, atol=1e-5)


def test_the_critic_starts_at_0_and_learns(actor, spec, samples):
    actor.load(spec("critic"))
    method = make_method(PPOConfig(minibatch_size=8, epochs=5, critic_learning_rate=1e-3))
    groups = [(response(s, n, s.id, score=1.0),) for s, n in zip(samples, LENGTHS, strict=False)]
    rows = [row for (row,) in groups]
    for row, values in zip(rows, actor.score_rows(rows), strict=True):
        assert (values == 0).all() and len(values) == len(row.response_ids)
        row.tokens |= {"old_logprobs": values, "ref_logprobs": values, "old_values": values}
    method.prepare(groups)
    metrics = actor.train(groups, method, method.optimisation("critic"), seed=0)
    assert metrics["loss"] < metrics["first/loss"]
    values = np.concatenate(actor.score_rows(rows))
    assert values.mean() > 0.1


def test_bytes_of_float32_adamw(actor, spec, samples):
    actor.load(spec())
    actor.train(groups_of(samples, "sft"), make_method(CONFIGS["sft"]), optimisation(), seed=0)
    parameters = dict(actor._engine.module.named_parameters())
    learned = {n: p for n, p in parameters.items() if actor._engine.optimizer.state.get(p)}
    # The class token's own path: LLaVA reads the patches before CLIP's last norm.
    assert all("post_layernorm" in name for name in parameters.keys() - learned.keys())
    weights_bytes = sum(4 * p.numel() for p in parameters.values())
    learned_bytes = sum(4 * p.numel() for p in learned.values())
    memory = actor.memory()
    buffers = memory["weights"] - weights_bytes
    # rotary frequencies, position ids, banned ids: a trifle
    assert 0 <= buffers < 2048
    assert memory["gradients"] == learned_bytes
    # two moments, and one float32 step counter a tensor
    assert memory["optimizer"] == 2 * learned_bytes + 4 * len(learned)
    assert set(memory) == {"weights", "gradients", "optimizer"}


def test_what_is_frozen_stays_and_costs_no_optimiser_states(actor, spec, samples):
    actor.load(spec(frozen=("vision",)))
    before = weights(actor)
    actor.train(groups_of(samples, "sft"), make_method(CONFIGS["sft"]), optimisation(), seed=0)
    after, memory = weights(actor), actor.memory()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("vision_tower" in name for name in changed)
    trained = [p for p in actor._engine.module.parameters() if p.requires_grad]
    assert memory["gradients"] == sum(4 * p.numel() for p in trained) < memory["weights"]
    with pytest.raises(ValueError, match="no part of the model is called 'eyes'"):
        actor.load(spec(frozen=("eyes",)))


def test_unload_frees_everything(actor, spec, samples):
    actor.load(spec())
    actor.unload()
    assert actor.memory() == {}


def test_what_is_saved_gives_the_same_logprobs(actor, spec, samples, tiny_model, store, tmp_path):
    from actors.train_spec import TrainSpec
    from trainers.data.model_folder import check_model_folder

    actor.load(spec())
    groups = groups_of(samples, "sft")
    actor.train(groups, make_method(CONFIGS["sft"]), optimisation(), seed=0)
    rows = [row for (row,) in groups]
    before = actor.score_rows(rows)
    actor.save(str(tmp_path / "final"))
    check_model_folder(tmp_path / "final")
    actor.load(
        TrainSpec(role="policy", model_dir=str(tmp_path / "final"), image_root=str(store.root))
    )
    for old, new in zip(before, actor.score_rows(rows), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_reward_model_keeps_its_head(actor, spec, samples, store, tmp_path):
    from actors.modules import load_reward_module
    from actors.reward import load_reward_settings

    actor.load(spec("reward"))
    head = actor._engine.module.head
    torch.nn.init.normal_(head.out.weight)
    actor.save(str(tmp_path / "judge"), {"request": "critique", "max_critique_tokens": 8})
    loaded = load_reward_module(tmp_path / "judge")
    for name, tensor in head.state_dict().items():
        assert torch.equal(loaded.head.state_dict()[name], tensor)
    assert load_reward_settings(tmp_path / "judge")["max_critique_tokens"] == 8
    # vLLM loads every safetensors file of the folder itself: the head must not be among them
    assert [file.name for file in (tmp_path / "judge").glob("*.safetensors")] == [
        "model.safetensors"
    ]


def test_a_loss_that_is_not_finite_stops_with_role_and_step(actor, spec, samples):
    class Broken(type(make_method(CONFIGS["sft"]))):  # type: ignore[misc]
        def loss(self, role, outputs, batch, totals):
            loss, metrics = super().loss(role, outputs, batch, totals)
            return loss * math.nan, metrics

    actor.load(spec())
    with pytest.raises(FloatingPointError, match=r"policy: loss is nan at step 1; lower"):
        actor.train(groups_of(samples, "sft"), Broken(CONFIGS["sft"]), optimisation(), seed=0)


def test_warm_up_and_epochs_count_steps(actor, spec, samples):
    actor.load(spec())
    metrics = actor.train(
        groups_of(samples, "sft"),
        make_method(CONFIGS["sft"]),
        optimisation(epochs=3, minibatch_size=3, warmup_steps=100),
        seed=0,
    )
    # 8 groups in minibatches of 3: 3 steps an epoch; the ninth step is the ninth of warm-up
    assert metrics["steps"] == 9
    rate = actor._engine.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(1e-3 * 9 / 101)
