"""Adapters that leave the trainer by themselves: their names, their scaling, their bytes."""

from __future__ import annotations

import pytest
import torch

from actors.lora import adapters, add_adapters
from actors.modules import load_vlm
from actors.weight_sync import checkpoint_tensors, make_buckets, open_bucket

RANK, ALPHA = 4, 12.0
"""Scaling 3."""
TRAINED = 26_112
"""Elements, as `test_lora` counts them by hand."""


@pytest.fixture(scope="module")
def vlm(tiny_model):
    vlm = load_vlm(tiny_model)
    add_adapters(vlm, rank=RANK, alpha=ALPHA)
    torch.manual_seed(3)
    with torch.no_grad():
        for layer in adapters(vlm).values():
            layer.lora_B.weight.normal_()
    return vlm


def test_adapters_alone_are_two_tensors_of_every_layer(vlm):
    sent = dict(checkpoint_tensors(vlm, adapters="alone"))
    assert len(sent) == 2 * len(adapters(vlm))
    assert sum(bucket.arrays[0].nbytes for bucket in make_buckets(sent.items(), 1)) == 4 * TRAINED
    layer = adapters(vlm)["model.language_model.layers.0.self_attn.q_proj"]
    a, b = (sent[f"language_model.model.layers.0.self_attn.q_proj.lora_{x}.weight"] for x in "AB")
    assert torch.equal(a, layer.lora_A.weight)
    assert torch.equal(b, 3 * layer.lora_B.weight)


def test_base_and_adapters_are_what_is_merged(vlm, tiny_model):
    plain = dict(checkpoint_tensors(load_vlm(tiny_model)))
    merged = dict(checkpoint_tensors(vlm))
    beside = dict(checkpoint_tensors(vlm, adapters="beside"))
    alone = dict(checkpoint_tensors(vlm, adapters="alone"))
    assert beside.keys() == plain.keys() | alone.keys()
    assert all(torch.equal(beside[name], tensor) for name, tensor in (plain | alone).items())
    for name, tensor in merged.items():
        layer = name.removesuffix(".weight")
        b, a = (beside.get(f"{layer}.lora_{x}.weight") for x in "BA")
        change = 0 if b is None else b @ a
        torch.testing.assert_close(tensor, beside[name] + change)


def test_a_copy_without_adapters_has_none_to_send(tiny_model):
    assert not list(checkpoint_tensors(load_vlm(tiny_model), adapters="alone"))


@pytest.mark.deepspeed
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_every_zero_stage_sends_the_same_adapters(train_actor, tiny_model, store, zero_stage):
    from actors.train_spec import TrainSpec

    sent = []
    for stage in (0, zero_stage):
        train_actor.load(
            TrainSpec(
                role="policy",
                model_dir=tiny_model,
                image_root=str(store.root),
                zero_stage=stage,
                lora_rank=RANK,
            )
        )
        buckets = train_actor.weight_buckets(2**16, adapters="alone")
        sent.append(dict(pair for bucket in buckets for pair in open_bucket(bucket)))
    assert sent[0].keys() == sent[1].keys() and len(sent[0]) == 2 * 21
    assert all(torch.equal(sent[1][name], tensor) for name, tensor in sent[0].items())


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (4, 8), (8, 8), (512, 512)])
def test_the_engine_has_the_next_room_that_vllm_knows(rank, room):
    from actors.engine_adapter import served_rank

    assert served_rank(rank) == room


def test_a_rank_that_vllm_does_not_serve_is_refused():
    from actors.engine_adapter import served_rank
    from trainers.data.errors import UserError

    with pytest.raises(UserError, match=r"train\.lora_rank=513: .* up to rank 512"):
        served_rank(513)


def test_the_layers_that_the_engine_prepares_are_the_trainers(tiny_model):
    from actors.engine_adapter import engine_options

    assert engine_options(tiny_model, 0) == {}
    vlm = load_vlm(tiny_model)
    add_adapters(vlm, rank=2)
    last = {name.rpartition(".")[2] for name in adapters(vlm)}
    assert set(engine_options(tiny_model, 2)["lora_target_modules"]) == last


def test_a_tower_that_the_engine_cannot_adapt_is_refused_before_it_starts(tiny_model):
    from actors.engine_adapter import engine_options
    from trainers.data.errors import UserError

    with pytest.raises(UserError, match=r"of a llava model cannot be served \(of qwen2_5_vl"):
        engine_options(tiny_model, 2, vision=True)
