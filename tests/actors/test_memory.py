"""What is counted: each storage once, all of it, and everything that DeepSpeed holds."""

from __future__ import annotations

import gc
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from actors.memory import (
    bytes_by_kind,
    engine_tensors,
    module_bytes,
    storage_bytes,
    storages,
    tensors_in,
)
from trainers.batch import Batch, Row
from trainers.config import SFTConfig
from trainers.data.image_inputs import ImageInputs
from trainers.method import Optimisation
from trainers.registry import make_method


def test_a_storage_counts_once_and_whole():
    base = torch.zeros(10)
    assert storage_bytes([base[2:4], base[5:], base]) == 40
    assert storage_bytes([torch.zeros(0), torch.zeros(3, device="meta")]) == 0


def test_tensors_are_found_in_nested_containers():
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    found = tensors_in({"x": [a, (b, None)], "y": {"z": {c}}, "w": "text"})
    assert {tensor.numel() for tensor in found} == {1, 2, 3}


def test_a_module_has_buffers_that_its_state_dict_leaves_out():
    module = nn.Linear(2, 3)
    module.register_buffer("kept_out", torch.zeros(5), persistent=False)
    assert module_bytes(module) == 4 * (6 + 3 + 5)


def test_the_first_kind_gets_a_shared_storage():
    module = nn.Linear(2, 3, bias=False)  # 24 bytes
    flat = torch.zeros(10)
    module.weight.grad = flat[:6].view(3, 2)
    wrapper = SimpleNamespace(
        optimizer=SimpleNamespace(state={module.weight: {"step": torch.zeros(())}}),
        single_partition_of_fp32_groups=[module.weight.data, torch.zeros(7)],
        averaged_gradients={0: [flat[6:]]},
    )
    sizes = bytes_by_kind(engine_tensors(SimpleNamespace(module=module, optimizer=wrapper)))
    assert sizes == {"weights": 24, "optimizer": 4, "gradients": 40, "masters": 28}


@pytest.fixture(scope="module")
def actor(train_actor):
    return train_actor


def reachable() -> tuple[dict[int, int], dict[int, int]]:
    """Storages of all tensors that Python can reach and `gc.freeze` has not hidden, gradients too;
    those of batches and of images that were processed among them."""
    gc.collect()
    tensors: list[Tensor] = []
    inputs: list[Tensor] = []
    for item in gc.get_objects():
        if issubclass(type(item), Tensor):
            tensors.append(item)
        elif type(item) is Batch:
            inputs += tensors_in([getattr(item, field.name) for field in fields(item)])
        elif type(item) is ImageInputs:
            inputs += tensors_in(list(item._cache.values()))
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    return storages(tensors), storages(inputs)


@pytest.fixture
def nothing_from_before(actor):
    """Hides what other tests left: the walk over all objects becomes a short one."""
    actor.unload()
    gc.collect()
    gc.freeze()


@pytest.mark.deepspeed
@pytest.mark.usefixtures("nothing_from_before")
@pytest.mark.parametrize(
    ("stage", "bf16"), [(0, False), (0, True), (1, True), (2, False), (3, False), (3, True)]
)
def test_nothing_is_missed(actor, tiny_model, store, samples, monkeypatch, stage, bf16):
    from actors.train_spec import TrainSpec

    left: list[int] = []

    def spy(held):
        sizes = bytes_by_kind(held)
        if actor.steps == 1:
            counted = storages(t for tensors in held.values() for t in tensors)
            assert sum(sizes.values()) == sum(counted.values())
            everything, inputs = reachable()
            known = counted.keys() | inputs.keys()
            left.extend(size for address, size in everything.items() if address not in known)
        return sizes

    monkeypatch.setattr("actors.train.bytes_by_kind", spy)
    actor.load(
        TrainSpec(
            role="policy",
            model_dir=tiny_model,
            image_root=str(store.root),
            zero_stage=stage,
            bf16=bf16,
            micro_batch_size=1,
        )
    )
    groups = [(Row.of_response(sample, (7, 8, 1), sample.id),) for sample in samples[:4]]
    optimisation = Optimisation(learning_rate=1e-3, epochs=1, minibatch_size=2)
    actor.train(groups, make_method(SFTConfig()), optimisation, seed=0, num_threads=1)
    # the loss and its sum; mean and deviation of pixels, in the image processor's cache
    assert sorted(left) == [4, 4, 12, 12]
