"""Adapters: where they are, what they cost, what they leave alone, how they leave the trainer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from actors.lora import LoraLinear, LowRank, adapters, adapters_off, add_adapters
from actors.modules import load_vlm
from actors.reference import ReferenceActor
from actors.weight_sync import checkpoint_tensors, open_bucket
from trainers.batch import Row
from trainers.config import PPOConfig, SFTConfig
from trainers.method import Optimisation
from trainers.registry import make_method

LENGTHS = (3, 9, 1, 6, 12, 2, 5, 4)
WIDTH, INNER, LAYERS, RANK = 128, 256, 3, 4


def perturb(vlm) -> None:
    """Adapters as after some training: neither A nor B is what it started as."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if "lora_" in name:
                parameter += 0.05 * torch.randn_like(parameter)


def rows_of(samples, **scalars: float) -> list[Row]:
    return [
        Row.of_response(sample, (*range(7, 6 + length), 1), f"row-{index}", **scalars)
        for index, (sample, length) in enumerate(zip(samples, LENGTHS, strict=False))
    ]


# The layer ---------------------------------------------------------------------------------------


def test_a_merged_weight_by_hand():
    # scaling 3, B A = (1, 2)^T (5, 7) = ((5, 7), (10, 14))
    change = LowRank(torch.tensor([[5.0, 7.0]]), torch.tensor([[1.0], [2.0]]), 3.0)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert change.added_to(weight).tolist() == [[16, 21], [30, 43]]
    assert weight.tolist() == [[1, 0], [0, 1]]


def test_a_merged_bf16_weight_is_rounded_once():
    # In bf16 257 is 256 and 1 + 1/256 is 1: a product or a sum in bf16 would lose both.
    a, b = torch.ones(1, 1, dtype=torch.bfloat16), torch.ones(1, 1, dtype=torch.bfloat16)
    merged = LowRank(a, b, 1 / 256).added_to(torch.full((1, 1), 1 + 1 / 128).bfloat16())
    assert merged.dtype == torch.bfloat16
    assert merged.item() == pytest.approx(1 + 3 / 256, abs=1 / 256)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 9)] * 3),
    scaling=st.floats(0.1, 4.0),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_layer_is_its_merged_weight(sizes, scaling, bias, seed):
    torch.manual_seed(seed)
    inside, outside, rank = sizes
    base = nn.Linear(inside, outside, bias=bias)
    layer, x = LoraLinear(base, rank, scaling), torch.randn(3, inside)
    assert torch.equal(layer(x), base(x))  # B starts at zero
    nn.init.normal_(layer.lora_B.weight)
    merged = LowRank(layer.lora_A.weight, layer.lora_B.weight, scaling).added_to(base.weight)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, merged, base.bias))
    layer.enabled = False
    assert torch.equal(layer(x), base(x))


# The model ---------------------------------------------------------------------------------------


def test_adapters_are_on_the_language_models_linear_layers_only(tiny_model):
    vlm = load_vlm(tiny_model)
    add_adapters(vlm, rank=RANK)
    expected = {
        f"model.language_model.layers.{layer}.{part}_proj"
        for layer in range(LAYERS)
        for part in (
            *(f"self_attn.{p}" for p in "qkvo"),
            *(f"mlp.{p}" for p in ("gate", "up", "down")),
        )
    }
    assert set(adapters(vlm)) == expected
    trained = {name: p for name, p in vlm.named_parameters() if p.requires_grad}
    assert all("lora_A" in name or "lora_B" in name for name in trained)
    # r * (in + out): q, k, v, o are 128 -> 128; gate, up 128 -> 256; down 256 -> 128
    by_hand = RANK * LAYERS * (4 * (WIDTH + WIDTH) + 3 * (WIDTH + INNER))
    assert sum(p.numel() for p in trained.values()) == by_hand == 26_112


def test_vision_adds_tower_and_projector_but_no_head(tiny_model):
    vlm = load_vlm(tiny_model)
    linear = {name for name, part in vlm.named_modules() if isinstance(part, nn.Linear)}
    add_adapters(vlm, rank=2, vision=True)
    assert set(adapters(vlm)) == linear - {"lm_head"}
    assert any("vision_tower" in name for name in adapters(vlm))
    assert any("projector" in name for name in adapters(vlm))


@pytest.mark.parametrize(("alpha", "scaling"), [(None, 2.0), (8.0, 2.0), (1.0, 0.25)])
def test_scaling_is_alpha_over_rank(tiny_model, alpha, scaling):
    vlm = load_vlm(tiny_model)
    add_adapters(vlm, rank=4, alpha=alpha)
    assert {layer.scaling for layer in adapters(vlm).values()} == {scaling}


def test_the_start_depends_on_the_seed_alone(tiny_model):
    def start(seed: int):
        torch.rand(seed + 1)  # the process's own random state is at another place
        vlm = load_vlm(tiny_model)
        before = torch.get_rng_state()
        add_adapters(vlm, rank=2, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        return torch.cat([layer.lora_A.weight.flatten() for layer in adapters(vlm).values()])

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))


def test_adapters_are_put_in_once(tiny_model):
    vlm = load_vlm(tiny_model)
    with pytest.raises(AssertionError, match="no adapters"), adapters_off(vlm):
        pass
    add_adapters(vlm, rank=2)
    with pytest.raises(ValueError, match="already"):
        add_adapters(vlm, rank=2)


def test_adapters_are_on_again_after_an_error(tiny_model):
    vlm = load_vlm(tiny_model)
    add_adapters(vlm, rank=2)
    with adapters_off(vlm):
        assert not any(layer.enabled for layer in adapters(vlm).values())
    with pytest.raises(KeyError), adapters_off(vlm):
        raise KeyError
    assert all(layer.enabled for layer in adapters(vlm).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_has_plain_names_and_the_module_stays(tiny_model, dtype):
    vlm = load_vlm(tiny_model, dtype)
    plain = dict(checkpoint_tensors(vlm))
    add_adapters(vlm, rank=2)
    at_start = dict(checkpoint_tensors(vlm))
    assert at_start.keys() == plain.keys()
    assert all(torch.equal(at_start[name], tensor) for name, tensor in plain.items())
    perturb(vlm)
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    first, second = dict(checkpoint_tensors(vlm)), dict(checkpoint_tensors(vlm))
    changed = {name for name, tensor in plain.items() if not torch.equal(first[name], tensor)}
    assert len(changed) == len(adapters(vlm))
    assert all(tensor.dtype == dtype and not tensor.requires_grad for tensor in first.values())
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    assert all(torch.equal(before[name], tensor) for name, tensor in vlm.state_dict().items())


# Training ----------------------------------------------------------------------------------------


@pytest.fixture
def load(train_actor, tiny_model, store):
    from actors.train_spec import TrainSpec

    def make(role: str = "policy", **options):
        values = {"lora_rank": RANK, "micro_batch_size": 4} | options
        train_actor.load(
            TrainSpec(role=role, model_dir=tiny_model, image_root=str(store.root), **values)
        )
        return train_actor

    return make


def learn(actor, rows, **options) -> dict[str, float]:
    settings = {"learning_rate": 1e-2, "epochs": 2, "minibatch_size": 4} | options
    method = make_method(SFTConfig())
    return actor.train([(row,) for row in rows], method, Optimisation(**settings), seed=0)


def score(model_dir, store, rows) -> list[np.ndarray]:
    from actors.train_spec import TrainSpec

    reference = ReferenceActor()
    reference.load(
        TrainSpec(role="reference", model_dir=str(model_dir), image_root=str(store.root))
    )
    return reference.score_rows(rows)


def largest_gap(left, right) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))


@pytest.mark.deepspeed
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"zero_stage": 3, "gradient_checkpointing": True},
        {"lora_vision": True},
    ],
    ids=str,
)
def test_a_policy_with_adapters(load, tiny_model, store, samples, tmp_path, options):
    rows = rows_of(samples)
    base = score(tiny_model, store, rows)
    actor = load(**options)
    assert largest_gap(actor.score_rows(rows), base) == 0
    plain = load_vlm(tiny_model).state_dict()
    metrics = learn(actor, rows)
    assert metrics["loss"] < metrics["first/loss"]
    # Switched off between steps: the base to the bit, and training goes on as if nothing had been.
    assert largest_gap(actor.score_rows(rows, adapters=False), base) == 0
    learn(actor, rows)
    trained = actor.score_rows(rows)
    assert largest_gap(trained, base) > 0.1
    assert largest_gap(actor.score_rows(rows, adapters=False), base) == 0
    buckets = actor.weight_buckets(2**16)
    sent = dict(pair for bucket in buckets for pair in open_bucket(bucket))
    actor.save(str(tmp_path / "final"))
    # What is sent is what is saved, and both compute what the trainer computes.
    saved = dict(checkpoint_tensors(load_vlm(tmp_path / "final")))
    assert sent.keys() == saved.keys() == dict(checkpoint_tensors(load_vlm(tiny_model))).keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in sent.items())
    assert largest_gap(score(tmp_path / "final", store, rows), trained) < 1e-5
    if options.get("zero_stage") != 3:  # whose parameters are partitioned
        state = actor._engine.module.vlm.state_dict()
        kept = {
            name.replace(".base_layer", ""): t for name, t in state.items() if "lora" not in name
        }
        assert kept.keys() == plain.keys()
        assert all(torch.equal(tensor, plain[name]) for name, tensor in kept.items())


@pytest.mark.deepspeed
def test_scoring_the_base_in_between_does_not_change_training(load, samples):
    rows, results = rows_of(samples), []
    for between in (False, True):
        actor = load()
        for _ in range(2):
            learn(actor, rows, epochs=1)
            if between:
                actor.score_rows(rows, adapters=False)
        results.append(actor.score_rows(rows))
    assert largest_gap(*results) == 0


@pytest.mark.deepspeed
def test_checkpointed_activations_give_the_same_step(load, samples):
    rows, results = rows_of(samples), []
    for checkpointing in (False, True):
        actor = load(gradient_checkpointing=checkpointing)
        learn(actor, rows)
        results.append(actor.score_rows(rows))
    assert largest_gap(*results) < 1e-5


@pytest.mark.deepspeed
def test_only_adapters_have_gradients_and_optimiser_states(load, samples):
    actor = load()
    learn(actor, rows_of(samples))
    memory = actor.memory()
    trained = 26_112  # see above
    # B starts at zero, but its gradient does not: every adapter learns.
    assert memory["gradients"] == 4 * trained
    assert memory["optimizer"] == pytest.approx(2 * 4 * trained, rel=0.01)
    assert memory["weights"] > 4 * 1_000_000


@pytest.mark.deepspeed
@pytest.mark.parametrize("bf16", [False, True])
def test_a_critic_trains_adapters_and_its_head(load, samples, bf16):
    actor = load("critic", bf16=bf16)
    method = make_method(PPOConfig(minibatch_size=8, epochs=5, critic_learning_rate=1e-2))
    groups = [(row,) for row in rows_of(samples, score=1.0)]
    rows = [row for (row,) in groups]
    for row, values in zip(rows, actor.score_rows(rows), strict=True):
        assert (values == 0).all() and values.dtype == np.float32
        row.tokens |= {"old_logprobs": values, "ref_logprobs": values, "old_values": values}
    method.prepare(groups)
    before = {n: p.detach().clone() for n, p in actor._engine.module.named_parameters()}
    metrics = actor.train(groups, method, method.optimisation("critic"), seed=0)
    assert metrics["loss"] < metrics["first/loss"]
    changed = {
        name
        for name, parameter in actor._engine.module.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert changed == {name for name in before if "lora_" in name or name == "head.weight"}


@pytest.mark.deepspeed
def test_bf16_adapters_follow_the_base_and_have_float32_masters(load, samples, store, tmp_path):
    actor, rows = load(bf16=True, zero_stage=2), rows_of(samples)
    assert {p.dtype for p in actor._engine.module.parameters()} == {torch.bfloat16}
    start = actor.score_rows(rows)
    metrics = learn(actor, rows)
    assert metrics["loss"] < metrics["first/loss"]
    assert largest_gap(actor.score_rows(rows, adapters=False), start) == 0
    assert actor.memory()["masters"] == pytest.approx(4 * 26_112, rel=0.01)


# Two ranks ---------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_ranks_send_what_one_sends(shared_session, tiny_model, store, samples, zero_stage):
    import ray

    from actors.train_spec import TrainSpec
    from cluster.session import Session

    results = []
    for session, stage in (
        (shared_session, 0),
        (Session(num_threads=1, console=shared_session.console, num_ranks=2), zero_stage),
    ):
        spec = TrainSpec(
            role="policy",
            model_dir=tiny_model,
            image_root=str(store.root),
            zero_stage=stage,
            micro_batch_size=2,
            lora_rank=RANK,
        )
        session.load_trainer("policy", spec)
        group, rows = session.trainer("policy"), rows_of(samples)[:7]
        options = Optimisation(learning_rate=1e-3, epochs=2, minibatch_size=7)
        groups = [(row,) for row in rows]
        ray.get(group.call("train", groups, make_method(SFTConfig()), options, seed=0), timeout=120)
        buckets = ray.get(group.call("weight_buckets", 2**18), timeout=120)
        assert all(not other for other in buckets[1:])
        sent = dict(pair for bucket in buckets[0] for pair in open_bucket(bucket))
        base = group.finish_rows(group.begin_rows("score_rows", rows, adapters=False), len(rows))
        results.append((sent, group.score_rows(rows), base))
        for actor in session._groups["policy"].actors if session is not shared_session else ():
            ray.kill(actor)
    (one, one_scores, one_base), (two, two_scores, two_base) = results
    assert one.keys() == two.keys()
    assert max(float((two[name] - tensor).abs().max()) for name, tensor in one.items()) < 1e-5
    assert largest_gap(two_scores, one_scores) < 1e-4
    assert largest_gap(two_base, one_base) < 1e-5 < largest_gap(one_scores, one_base)
