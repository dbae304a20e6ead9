"""Buckets: bounded, complete, checked; names of the checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from actors.modules import load_vlm
from actors.weight_sync import CorruptBucketError, checkpoint_tensors, make_buckets, open_bucket

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)


def tensors_of(shapes):
    torch.manual_seed(0)
    return [
        (f"layer.{index}", (100 * torch.randn(shape)).to(DTYPES[index % len(DTYPES)]))
        for index, shape in enumerate(shapes)
    ]


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=12),
    limit=st.integers(1, 300),
)
def test_round_trip_in_bounded_buckets(shapes, limit):
    tensors = tensors_of(shapes)
    buckets = make_buckets(tensors, limit)
    for bucket in buckets:
        assert sum(a.nbytes for a in bucket.arrays) <= limit or len(bucket.arrays) == 1
    opened = [pair for bucket in buckets for pair in open_bucket(bucket)]
    assert [name for name, _ in opened] == [name for name, _ in tensors]
    for (_, new), (_, old) in zip(opened, tensors, strict=True):
        assert new.dtype == old.dtype and new.shape == old.shape
        assert torch.equal(new, old)


def test_strided_tensors_keep_their_values():
    matrix = torch.arange(6.0).reshape(2, 3).T
    half = torch.arange(8, dtype=torch.bfloat16)[::2]
    (bucket,) = make_buckets([("t", matrix), ("h", half)], 2**20)
    opened = dict(open_bucket(bucket))
    assert torch.equal(opened["t"], matrix) and torch.equal(opened["h"], half)


def test_a_bucket_does_not_share_memory_with_the_weights():
    weight = torch.zeros(3)
    (bucket,) = make_buckets([("w", weight)], 2**20)
    weight += 1.0
    assert open_bucket(bucket)[0][1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("place", [0, -1])
def test_one_changed_byte_is_found(place):
    (bucket,) = make_buckets(tensors_of([(4, 4), (3,)]), 2**20)
    array = bucket.arrays[0].copy()
    array.view(np.uint8).reshape(-1)[place] ^= 1
    with pytest.raises(CorruptBucketError, match=r"layer\.0"):
        open_bucket(replace(bucket, arrays=(array, *bucket.arrays[1:])))


def test_exchanged_names_are_found():
    (bucket,) = make_buckets(tensors_of([(4,), (4,)]), 2**20)
    with pytest.raises(CorruptBucketError):
        open_bucket(replace(bucket, names=bucket.names[::-1]))


def test_names_are_those_of_the_file(tiny_model):
    vlm = load_vlm(tiny_model)
    tensors = dict(checkpoint_tensors(vlm))
    with safe_open(f"{tiny_model}/model.safetensors", "pt") as file:
        assert set(tensors) == set(file.keys())
        for name, tensor in tensors.items():
            assert torch.equal(tensor, file.get_tensor(name)), name


def test_partitioned_weights_are_gathered_a_part_at_a_time(train_actor, tiny_model, store):
    import deepspeed

    from actors.train_spec import TrainSpec

    spec = TrainSpec(role="policy", model_dir=tiny_model, image_root=str(store.root), zero_stage=3)
    train_actor.load(spec)
    vlm = train_actor._engine.module.vlm
    whole: list[int] = []

    class Counted(deepspeed.zero.GatheredParameters):
        def __enter__(self):
            entered = super().__enter__()
            whole.append(sum(p.nbytes for p in vlm.parameters() if p.numel() == p.ds_numel))
            return entered

    limit = 2**18
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deepspeed.zero, "GatheredParameters", Counted)
        tensors = dict(checkpoint_tensors(vlm, gather=True, gather_bytes=limit))
        assert not dict(checkpoint_tensors(vlm, gather=True, gather_bytes=limit, keep=False))
    plain = dict(checkpoint_tensors(load_vlm(tiny_model)))
    assert tensors.keys() == plain.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in plain.items())
    kept = min(whole)  # the small ones, which ZeRO-3 never partitions
    largest = max(tensor.nbytes for tensor in plain.values())
    assert len(whole) > 4 and max(whole) - kept <= max(limit, largest)
