"""Optimiser states on a disk: bytes by hand, and those that DeepSpeed holds and writes."""

from __future__ import annotations

import shutil
from ctypes.util import find_library
from dataclasses import replace

import pytest

from actors.modules import load_vlm
from actors.train_spec import TrainSpec
from cluster.planner.disk import disk_copy_bytes
from cluster.planner.static import Sharding, TensorShape, sub_groups
from tests.cluster.planner.test_static_measured import bucket_of, override, tensors_of, training
from trainers.data.processing import Processing

LARGE = 2**18
"""Elements that take 1 MiB in float32."""


def shape(numel: int, **others) -> TensorShape:
    return TensorShape(name="", numel=numel, trained=True, **others)


def test_sub_groups_close_when_full():
    sharding = Sharding(zero_stage=3, sub_group_size=10)
    assert sub_groups([4, 6, 7, 3, 2], sharding) == [range(2), range(2, 4), range(4, 5)]
    assert sub_groups([4, 5], sharding) == [range(2)]


def test_by_hand():
    """Three sub-groups: a matrix and a norm that go to the disk, a matrix whose end is not aligned,
    and a norm alone, which stays.
    """
    shapes = [shape(LARGE), shape(10), shape(LARGE + 20), shape(6)]
    sharding = Sharding(zero_stage=3, bf16=True, reduce_bucket_size=100, sub_group_size=LARGE + 10)
    found = disk_copy_bytes(shapes, 8, sharding)
    numel = 2 * LARGE + 36
    # files end at multiples of 256 elements; gradients are written as far as they are aligned
    assert found.disk == 12 * 2 * (LARGE + 256) + 4 * 2 * LARGE
    assert found.host == {
        "optimizer": 8 * 6 + 4 * 3,
        "masters": 4 * 6,
        "gradients": 2 * numel + 4 * 6,
        "communication": 16 * (LARGE + 256),
    }
    # the bucket and two scalars, a norm for each tensor, float32 copies of 10 and of LARGE + 20
    staged = 4 * 10 + 4 * (LARGE + 20)
    assert found.device == {
        "weights": 2 * numel + 8,
        "communication": 2 * 100 + 5 + 8 * 4 + staged,
    }


def test_an_unreached_tensor_has_no_gradient():
    sharding = Sharding(zero_stage=3, bf16=True, reduce_bucket_size=100)
    shapes = [shape(LARGE), shape(LARGE, reached=False)]
    found = disk_copy_bytes(shapes, 0, sharding)
    assert found.disk == 12 * 2 * LARGE + 4 * LARGE
    assert found.device["communication"] == 2 * 100 + 5 + 8


def test_two_ranks_halve_what_is_large():
    shapes = [shape(8 * LARGE)]
    one, two = (disk_copy_bytes(shapes, 0, Sharding(zero_stage=3, num_ranks=n)) for n in (1, 2))
    assert one.disk == 2 * two.disk == 16 * 8 * LARGE
    assert one.host["gradients"] == 2 * two.host["gradients"]


def test_other_stages_have_no_disk():
    with pytest.raises(ValueError, match="only ZeRO 3"):
        disk_copy_bytes([shape(LARGE)], 0, Sharding(zero_stage=2))


@pytest.fixture(scope="module", params=[2100, 2101])
def large_model(request, tmp_path_factory, tiny_model) -> str:
    """The tiny model with a vocabulary whose weights go to the disk, aligned or not."""
    folder = tmp_path_factory.mktemp("large") / "model"
    shutil.copytree(tiny_model, folder)
    import torch

    vlm = load_vlm(tiny_model, torch.float32)
    vlm.resize_token_embeddings(request.param)
    vlm.save_pretrained(folder)
    return str(folder)


@pytest.mark.deepspeed
@pytest.mark.slow  # compiles for minutes where it was not compiled before
@pytest.mark.timeout(1200)
@pytest.mark.skipif(find_library("aio") is None, reason="needs libaio")
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("options", [{}, {"sub_group_size": 300_000}])
@pytest.mark.parametrize("trained", [{}, {"lora_rank": 4}])
def test_measured(train_actor, large_model, store, samples, tmp_path, bf16, options, trained):
    spec = TrainSpec(
        role="policy",
        model_dir=large_model,
        image_root=str(store.root),
        zero_stage=3,
        bf16=bf16,
        micro_batch_size=1,
        offload_optimizer="nvme",
        nvme_path=str(tmp_path),
        **trained,
    )
    with pytest.MonkeyPatch.context() as patcher:
        override(patcher, options)
        train_actor.load(spec)
    train_actor.train(*training("policy", samples), seed=0, num_threads=1)
    plain = replace(spec, zero_stage=0, offload_optimizer="none", nvme_path=None)
    shapes, buffers = tensors_of(plain, Processing(large_model, store))
    sharding = Sharding(zero_stage=3, bf16=bf16, **bucket_of(shapes), **options)
    planned = disk_copy_bytes(shapes, buffers, sharding)
    both = {
        kind: planned.device.get(kind, 0) + planned.host.get(kind, 0)
        for kind in planned.device | planned.host
    }
    assert train_actor.memory() == both
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) == planned.disk
