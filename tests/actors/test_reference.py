"""The frozen reference: refresh takes a policy's weights, all of them or none of it counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actors.modules import load_vlm
from actors.reference import ReferenceActor
from actors.train_spec import TrainSpec
from actors.weight_sync import checkpoint_tensors, make_buckets, open_bucket
from trainers.batch import Row


@pytest.fixture
def reference(tiny_model, store):
    actor = ReferenceActor()
    actor.load(TrainSpec(role="reference", model_dir=tiny_model, image_root=str(store.root)))
    return actor


@pytest.fixture
def rows(samples):
    return [
        Row.of_response(sample, (9, 20, 30 + index, 1), f"row-{index}")
        for index, sample in enumerate(samples[:4])
    ]


def changed(tiny_model):
    vlm = load_vlm(tiny_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in vlm.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return vlm


def test_refresh_gives_the_new_policys_logprobs(reference, rows, tiny_model, store, tmp_path):
    before = np.stack(reference.score_rows(rows))
    vlm = changed(tiny_model)
    reference.refresh(make_buckets(checkpoint_tensors(vlm), 2**16))
    after = np.stack(reference.score_rows(rows))
    assert np.abs(after - before).mean() > 1e-3
    # every parameter arrived: reverting the names again gives what was sent
    own = dict(checkpoint_tensors(reference._module.vlm))
    for name, tensor in checkpoint_tensors(vlm):
        assert torch.equal(own[name], tensor), name


def test_reverted_names_share_storage_with_the_module(reference):
    # What `refresh` rests on: a copy would be written to and thrown away.
    vlm = reference._module.vlm
    addresses = {parameter.data_ptr() for parameter in vlm.parameters()}
    assert all(tensor.data_ptr() in addresses for _, tensor in checkpoint_tensors(vlm))


def test_a_missing_weight_is_refused(reference, tiny_model):
    tensors = list(checkpoint_tensors(changed(tiny_model)))
    name = tensors[5][0]
    buckets = make_buckets([pair for pair in tensors if pair[0] != name], 2**20)
    with pytest.raises(RuntimeError, match=name):
        reference.refresh(buckets)


def test_padding_and_batch_size_do_not_change_logprobs(reference, samples):
    rows = [
        Row.of_response(sample, tuple(range(6, 8 + 3 * index)), f"row-{index}")
        for index, sample in enumerate(samples[:6])
    ]
    together = reference.score_rows(rows)
    alone = reference.score_rows(rows, batch_size=1)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_forward_has_a_micro_batchs_rows(rows, tiny_model, store):
    actor, sizes = ReferenceActor(), []
    actor.load(
        TrainSpec(
            role="reference",
            model_dir=tiny_model,
            image_root=str(store.root),
            micro_batch_size=3,
        )
    )
    actor._module.register_forward_hook(lambda _, given, __: sizes.append(given[0].num_rows))
    assert len(actor.score_rows(rows)) == 4 and sorted(sizes) == [1, 3]


def test_memory_and_unload(reference):
    module = reference._module
    held = [*module.parameters(), *module.buffers()]  # position ids and banned ids, too
    assert reference.memory() == {"weights": sum(tensor.nbytes for tensor in held)}
    reference.unload()
    assert reference.memory() == {}


def test_parked_it_keeps_its_bytes_and_gives_them_back(reference, samples):
    rows = [Row.of_response(samples[0], (8, 9, 1), "row")]
    before, held = reference.score_rows(rows)[0], reference.memory()
    assert reference.park() == sum(held.values())
    assert reference.park() == 0  # it is there already
    reading = reference.end_phase("sync")
    assert reading.parked == {"reference": held} and "reference" not in reading.copies
    assert reference.wake() == sum(held.values())
    np.testing.assert_array_equal(reference.score_rows(rows)[0], before)


def test_a_moving_average_moves_by_its_rate(reference, tiny_model):
    start = {n: t.clone() for n, t in checkpoint_tensors(reference._module.vlm)}
    target = dict(checkpoint_tensors(changed(tiny_model)))
    for _ in range(2):
        reference.refresh(make_buckets(target.items(), 2**20), 0.5)
    # After two halvings a quarter of the start is left.
    for name, tensor in checkpoint_tensors(reference._module.vlm):
        torch.testing.assert_close(tensor, 0.25 * start[name] + 0.75 * target[name])
    sent = [pair for bucket in reference.weight_buckets(2**16) for pair in open_bucket(bucket)]
    own = dict(checkpoint_tensors(reference._module.vlm))
    assert {name for name, _ in sent} == set(own)
    assert all(torch.equal(tensor, own[name]) for name, tensor in sent)
