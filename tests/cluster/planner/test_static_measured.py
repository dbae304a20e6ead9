"""Predicted bytes are the measured ones, to the byte, for every trained and every frozen copy."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch

from actors.lora import add_adapters
from actors.memory import module_bytes, storage_bytes
from actors.modules import CriticModule, PolicyModule, load_vlm
from actors.train import TrainActor
from actors.train_spec import REDUCE_BUCKET_SIZE, TrainSpec
from cluster.planner.offload import offloaded_copy_bytes
from cluster.planner.static import Sharding, TensorShape, frozen_copy_bytes, trained_copy_bytes
from trainers.batch import Row
from trainers.config import PPOConfig, SFTConfig
from trainers.method import Optimisation
from trainers.registry import make_method

pytestmark = pytest.mark.deepspeed
TRAINED = {"all": {}, "no tower": {"frozen": ("vision",)}, "adapters": {"lora_rank": 4}}
COPIES = [("policy", "all"), ("policy", "no tower"), ("policy", "adapters"), ("critic", "all")]
SMALL_BUFFERS = {"reduce_bucket_size": 100_000, "sub_group_size": 100_000}


def one_rank_cases():
    """All of stage x dtype x copy; half of them are enough for a quick run."""
    for stage, bf16, (role, trained) in itertools.product(range(4), (False, True), COPIES):
        fast = (role, trained) == ("policy", "all") or (trained == "adapters" and bf16)
        fast |= trained == "no tower" and stage in (1, 3) and not bf16
        fast |= role == "critic" and (stage, bf16) in ((0, False), (2, True))
        yield pytest.param(stage, bf16, role, trained, marks=() if fast else (pytest.mark.slow,))


@pytest.fixture(scope="module")
def actor(train_actor):
    return train_actor


@functools.cache
def tensors_of(spec: TrainSpec, processing) -> tuple[list[TensorShape], int]:
    """Shapes and buffers of a copy, from its module without DeepSpeed."""
    vlm = load_vlm(spec.model_dir, torch.bfloat16 if spec.bf16 else torch.float32)
    if spec.role == "critic":
        module: torch.nn.Module = CriticModule(vlm)
    else:
        module = PolicyModule(vlm, banned_ids=processing.banned_ids())
    if spec.lora_rank:
        add_adapters(vlm, rank=spec.lora_rank)
    shapes = [
        TensorShape(
            name=name,
            numel=parameter.numel(),
            trained=parameter.requires_grad and not any(part in name for part in spec.frozen),
            bytes_per_element=parameter.element_size(),
            # the class token's own path: LLaVA reads the patches before CLIP's last norm
            reached="post_layernorm" not in name,
        )
        for name, parameter in module.named_parameters()
    ]
    return shapes, storage_bytes(module.buffers())


def bucket_of(shapes: list[TensorShape]) -> dict[str, int]:
    """As `deepspeed_config` sets it."""
    trained = sum(shape.numel for shape in shapes if shape.trained)
    return {"reduce_bucket_size": min(REDUCE_BUCKET_SIZE, trained)}


def training(role: str, samples):
    """Four groups of one row, a method and how to take two steps, two micro-batches each."""
    rows = [Row.of_response(s, (7 + i, 8, 1), s.id, score=1.0) for i, s in enumerate(samples[:4])]
    groups = [(row,) for row in rows]
    if role == "critic":
        method = make_method(PPOConfig())
        for row in rows:
            zeros = np.zeros(3, np.float32)
            row.tokens |= {"old_logprobs": zeros, "ref_logprobs": zeros, "old_values": zeros}
        method.prepare(groups)
    else:
        method = make_method(SFTConfig())
    return groups, method, Optimisation(learning_rate=1e-3, epochs=1, minibatch_size=2)


@pytest.mark.parametrize(("stage", "bf16", "role", "trained"), list(one_rank_cases()))
def test_a_trained_copy(actor, tiny_model, store, processing, samples, stage, bf16, role, trained):
    spec = TrainSpec(
        role=role,
        model_dir=tiny_model,
        image_root=str(store.root),
        zero_stage=stage,
        bf16=bf16,
        micro_batch_size=1,
        **TRAINED[trained],
    )
    actor.load(spec)
    actor.train(*training(role, samples), seed=0, num_threads=1)
    shapes, buffers = tensors_of(replace(spec, zero_stage=0), processing)
    sharding = Sharding(zero_stage=stage, bf16=bf16, **bucket_of(shapes))
    assert actor.memory() == trained_copy_bytes(shapes, buffers, sharding)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize(
    ("stage", "bf16"),
    [(2, True), (3, False), *(pytest.param(1, b, marks=pytest.mark.slow) for b in (0, 1))],
)
def test_an_offloaded_optimizer(
    actor, tiny_model, store, processing, samples, stage, bf16, micro_batches
):
    """Device and host together: on a CPU both are the host's."""
    spec = TrainSpec(
        role="policy",
        model_dir=tiny_model,
        image_root=str(store.root),
        zero_stage=stage,
        bf16=bool(bf16),
        micro_batch_size=2 // micro_batches,
        offload_optimizer="cpu",
    )
    actor.load(spec)
    actor.train(*training("policy", samples), seed=0, num_threads=1)
    plain = replace(spec, zero_stage=0, micro_batch_size=1, offload_optimizer="none")
    shapes, buffers = tensors_of(plain, processing)
    sharding = Sharding(zero_stage=stage, bf16=bool(bf16), **bucket_of(shapes))
    planned = offloaded_copy_bytes(shapes, buffers, sharding, accumulate=micro_batches > 1)
    both = {
        kind: planned.device.get(kind, 0) + planned.host.get(kind, 0)
        for kind in planned.device | planned.host
    }
    assert actor.memory() == both


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_buckets_and_sub_groups(actor, tiny_model, store, processing, samples, monkeypatch, stage):
    override(monkeypatch, SMALL_BUFFERS)
    spec = TrainSpec(
        role="policy", model_dir=tiny_model, image_root=str(store.root), zero_stage=stage
    )
    actor.load(spec)
    actor.train(*training("policy", samples), seed=0, num_threads=1)
    shapes, buffers = tensors_of(replace(spec, zero_stage=0), processing)
    sharding = Sharding(zero_stage=stage, **SMALL_BUFFERS)
    assert actor.memory() == trained_copy_bytes(shapes, buffers, sharding)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_frozen_copy(tiny_model, store, processing, bf16):
    from actors.reference import ReferenceActor

    reference = ReferenceActor()
    reference.load(
        TrainSpec(role="reference", model_dir=tiny_model, image_root=str(store.root), bf16=bf16)
    )
    spec = TrainSpec(role="policy", model_dir=tiny_model, image_root=str(store.root), bf16=bf16)
    shapes, buffers = tensors_of(replace(spec, zero_stage=0), processing)
    predicted = frozen_copy_bytes(shapes, buffers)
    assert {"weights": module_bytes(reference._module)} == predicted


# Two ranks ---------------------------------------------------------------------------------------


def override(patcher, zero_options: dict[str, int]) -> None:
    """Put options into the `zero_optimization` part that `TrainActor.load` gives to DeepSpeed."""
    import deepspeed

    initialize = deepspeed.initialize

    def changed(*args, config, **kwargs):
        zero = {**config["zero_optimization"], **zero_options}
        return initialize(*args, config={**config, "zero_optimization": zero}, **kwargs)

    patcher.setattr(deepspeed, "initialize", changed)


class Overridden(TrainActor):
    """A rank whose parameters of more than 5,000 elements are not kept whole under ZeRO 3."""

    def load(self, spec: TrainSpec) -> None:
        with pytest.MonkeyPatch.context() as patcher:
            override(patcher, {**SMALL_BUFFERS, "stage3_param_persistence_threshold": 5000})
            super().load(spec)


def ranks_of(session, kind: type[TrainActor]):
    group = session.ranks("policy", 2, 1, kind)
    group.connect()
    return group


@pytest.fixture(scope="module")
def two(shared_session):
    group = ranks_of(shared_session, TrainActor)
    yield group
    group.end()


@pytest.fixture(scope="module")
def two_overridden(shared_session):
    group = ranks_of(shared_session, Overridden)
    yield group
    group.end()


def check_two_ranks(group, spec: TrainSpec, processing, samples, **options: int) -> None:
    ray.get(group.call("load", spec), timeout=120)
    ray.get(group.call("train", *training(spec.role, samples), seed=0, num_threads=1), timeout=120)
    shapes, buffers = tensors_of(replace(spec, zero_stage=0), processing)
    sizes = {**bucket_of(shapes), **options}
    sharding = Sharding(zero_stage=spec.zero_stage, num_ranks=2, bf16=spec.bf16, **sizes)
    for rank, measured in enumerate(ray.get(group.call("memory"), timeout=60)):
        assert measured == trained_copy_bytes(shapes, buffers, sharding, rank)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(("role", "trained"), COPIES)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_trained_copy_on_two_ranks(
    two, tiny_model, store, processing, samples, stage, bf16, role, trained
):
    spec = TrainSpec(
        role=role,
        model_dir=tiny_model,
        image_root=str(store.root),
        zero_stage=stage,
        bf16=bf16,
        micro_batch_size=1,
        **TRAINED[trained],
    )
    check_two_ranks(two, spec, processing, samples)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(("bf16", "trained"), [(False, "all"), (True, "no tower")])
def test_large_parameters_are_partitioned(
    two_overridden, tiny_model, store, processing, samples, bf16, trained
):
    spec = TrainSpec(
        role="policy",
        model_dir=tiny_model,
        image_root=str(store.root),
        zero_stage=3,
        bf16=bf16,
        **TRAINED[trained],
    )
    check_two_ranks(
        two_overridden,
        spec,
        processing,
        samples,
        param_persistence_threshold=5000,
        **SMALL_BUFFERS,
    )
