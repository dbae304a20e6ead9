"""Of every family: planned bytes are those that DeepSpeed holds after real steps on the language
path, and the parameters that a loss does not reach are those that the plan says.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import ray
import torch

from actors.lora import add_adapters
from actors.memory import bytes_by_kind, engine_tensors, module_bytes
from actors.modules import CriticModule, PolicyModule, load_reward_module, load_vlm
from actors.parts import freeze
from actors.train import TrainActor
from actors.train_spec import REDUCE_BUCKET_SIZE, TrainSpec, deepspeed_config
from cluster.planner.architectures import load_architecture
from cluster.planner.copies import copy_tensors
from cluster.planner.reached import unreached
from cluster.planner.static import Sharding, frozen_copy_bytes, trained_copy_bytes
from trainers.batch import Batch

FAMILIES = (
    "llava-1.5-7b",
    "llava-onevision-7b",
    "qwen2.5-vl-7b",
    "qwen3-vl-8b",
    "internvl3-8b",
    "smolvlm2-256m",
)
TRAINED = {"all": 0, "adapters": 2}
ROWS, LENGTH, TARGETS = 2, 6, 3


def cases():
    """Stage x copy x what is trained x dtype, every family; some are enough for a quick run."""
    grid = itertools.product((0, 2, 3), ("policy", "critic"), TRAINED, (False, True))
    for number, (stage, role, trained, bf16) in enumerate(grid):
        for index, family in enumerate(FAMILIES):
            # Two of each family, float32: together all stages, roles, and what is trained.
            fast = number % 12 == 2 * index
            marks = () if fast else (pytest.mark.slow,)
            yield pytest.param(family, stage, role, trained, bf16, marks=marks)


def text_batch() -> Batch:
    """Two rows of text alone."""
    columns = torch.arange(TARGETS)
    return Batch(
        input_ids_BT=torch.arange(8, 8 + ROWS * LENGTH).view(ROWS, LENGTH),
        attention_mask_BT=torch.ones(ROWS, LENGTH, dtype=torch.long),
        positions_N3=torch.stack(
            [
                torch.arange(ROWS).repeat_interleave(TARGETS),
                (columns + LENGTH - TARGETS - 1).repeat(ROWS),
                columns.repeat(ROWS),
            ],
            dim=1,
        ),
        targets_N=torch.arange(10, 10 + ROWS * TARGETS),
        last_B=torch.full((ROWS,), LENGTH - 1),
        mask_BR=torch.ones(ROWS, TARGETS, dtype=torch.bool),
        model_inputs={},
        tokens={},
        scalars={},
    )


def held_by_deepspeed(spec: TrainSpec) -> dict[str, int]:
    """Bytes between the last backward of the second step and the step, two micro-batches each."""
    import deepspeed

    vlm = load_vlm(spec.model_dir, torch.bfloat16 if spec.bf16 else torch.float32)
    if spec.lora_rank:
        add_adapters(vlm, rank=spec.lora_rank)
    freeze(vlm, spec.frozen)
    module: Any = CriticModule(vlm) if spec.role == "critic" else PolicyModule(vlm, banned_ids=[0])
    trained = [p for p in module.parameters() if p.requires_grad]
    config = deepspeed_config(spec, sum(p.numel() for p in trained))
    engine, *_ = deepspeed.initialize(model=module, model_parameters=trained, config=config)
    sizes: dict[str, int] = {}
    for _, last in itertools.product(range(2), (False, True)):
        engine.set_gradient_accumulation_boundary(last)
        outputs = engine(text_batch())
        values = outputs.values_BR if spec.role == "critic" else outputs.logprobs_BR
        engine.backward(values.sum())
        if last:
            sizes = bytes_by_kind(engine_tensors(engine))
        engine.step()
    engine.destroy()
    return sizes


def planned(spec: TrainSpec, num_ranks: int, rank: int) -> dict[str, int]:
    copy = copy_tensors(
        load_architecture(spec.model_dir),
        spec.role,
        bf16=spec.bf16,
        lora_rank=spec.lora_rank,
        freeze=spec.frozen,
        num_banned=1,
        images=False,
    )
    sharding = Sharding(
        zero_stage=spec.zero_stage,
        num_ranks=num_ranks,
        bf16=spec.bf16,
        reduce_bucket_size=min(REDUCE_BUCKET_SIZE, copy.num_trained),
    )
    return trained_copy_bytes(copy.shapes, copy.buffer_bytes, sharding, rank)


def spec_of(folder: str, stage: int, role: str, trained: str, bf16: bool) -> TrainSpec:
    return TrainSpec(
        role=role,
        model_dir=folder,
        image_root="",
        zero_stage=stage,
        bf16=bf16,
        lora_rank=TRAINED[trained],
    )


@pytest.mark.deepspeed
@pytest.mark.usefixtures("train_actor")  # the process's DeepSpeed group
@pytest.mark.parametrize(("family", "stage", "role", "trained", "bf16"), list(cases()))
def test_a_trained_copy_of_each_family(family_folder, family, stage, role, trained, bf16):
    spec = spec_of(family_folder(family), stage, role, trained, bf16)
    assert held_by_deepspeed(spec) == planned(spec, 1, 0)


def frozen_cases():
    """Stage x parts, every family; one of each stage is enough for a quick run."""
    grid = itertools.product((0, 2, 3), (("vision",), ("vision", "projector")))
    for number, (stage, frozen) in enumerate(grid):
        for index, family in enumerate(FAMILIES):
            marks = () if number == index and number % 2 == 0 else (pytest.mark.slow,)
            yield pytest.param(family, stage, frozen, marks=marks)


@pytest.mark.deepspeed
@pytest.mark.usefixtures("train_actor")
@pytest.mark.parametrize(("family", "stage", "frozen"), list(frozen_cases()))
def test_a_frozen_part_has_no_gradients_and_no_states(family_folder, family, stage, frozen):
    whole = spec_of(family_folder(family), stage, "policy", "all", bf16=False)
    spec = replace(whole, frozen=frozen)
    held = held_by_deepspeed(spec)
    assert held == planned(spec, 1, 0)
    assert held["optimizer"] < planned(whole, 1, 0)["optimizer"]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_copies_of_each_family(family_folder, family, bf16):
    folder = family_folder(family)
    dtype = torch.bfloat16 if bf16 else torch.float32
    held = {
        "reference": PolicyModule(load_vlm(folder, dtype), banned_ids=[0]),
        "reward": load_reward_module(folder, dtype),
    }
    for role, module in held.items():
        copy = copy_tensors(load_architecture(folder), role, bf16=bf16, num_banned=1)
        assert frozen_copy_bytes(copy.shapes, copy.buffer_bytes)["weights"] == module_bytes(module)


# Two ranks ---------------------------------------------------------------------------------------


class Rank(TrainActor):
    """A rank that takes steps on text."""

    def held(self, spec: TrainSpec) -> dict[str, int]:
        return held_by_deepspeed(spec)


@pytest.fixture(scope="module")
def ranks(shared_session):
    group = shared_session.ranks("policy", 2, 1, Rank)
    group.connect()
    yield group
    group.end()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.deepspeed
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("role", ["policy", "critic"])
@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_copy_of_each_family_on_two_ranks(
    ranks, family_folder, family, stage, role, trained
):
    spec = spec_of(family_folder(family), stage, role, trained, bf16=True)
    measured = ray.get(ranks.call("held", spec), timeout=120)
    assert measured == [planned(spec, 2, rank) for rank in range(2)]


# What a loss reaches -----------------------------------------------------------------------------


def image_inputs(config: Any) -> tuple[dict[str, torch.Tensor], int]:
    """Pixels of one image as the family's processor makes them, and its tokens."""
    vision = config.vision_config
    if config.model_type.startswith("qwen"):
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, 4, 4]])
        return {"pixel_values": torch.randn(16, width), "image_grid_thw": grid}, 4
    side, patch = (
        value if isinstance(value, int) else value[0]
        for value in (vision.image_size, vision.patch_size)
    )
    patches = side // patch
    if config.model_type == "llava_onevision":
        # the image in one tile, and again in a grid of one, whose rows end with a newline
        pixels, size = torch.randn(1, 2, 3, side, side), torch.tensor([[side, side]])
        return {"pixel_values": pixels, "image_sizes": size}, 2 * patches**2 + patches
    if config.model_type == "smolvlm":
        pixels = torch.randn(1, 1, 3, side, side)
        return {"pixel_values": pixels}, patches**2 // config.scale_factor**2
    merge = config.downsample_ratio if config.model_type == "internvl" else 1
    return {"pixel_values": torch.randn(1, 3, side, side)}, int(patches**2 * merge**2)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_loss_reaches(family_folder, family):
    folder = family_folder(family)
    architecture, vlm = load_architecture(folder), load_vlm(folder)
    inputs, number = image_inputs(architecture.config)
    text_ids = torch.tensor([[10, 11, 12]])
    image_ids = torch.tensor([[5, *[3] * number, 6, 10, 11, 12]])
    if family.startswith("qwen"):
        inputs["mm_token_type_ids"] = (image_ids == 3).int()
    for ids, given in ((text_ids, {}), (image_ids, inputs)):
        vlm.zero_grad(set_to_none=True)
        states = vlm.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **given
        )
        vlm.lm_head(states.last_hidden_state).square().sum().backward()
        beyond = unreached(architecture, images=bool(given))
        without = {name for name, parameter in vlm.named_parameters() if parameter.grad is None}
        assert without == {name for name, _ in vlm.named_parameters() if beyond(name)}
