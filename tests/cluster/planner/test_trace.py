"""Traced memory against the same step on real tensors."""

from __future__ import annotations

import pytest

from actors.modules import CriticModule, PolicyModule, load_vlm
from actors.tracker import StorageTracker
from cluster.planner.architectures import load_architecture
from cluster.planner.image_tokens import patches_per_token
from cluster.planner.trace import Workload, trace_step, vision_bytes
from trainers.batch import Row, collate, encode_row

RESPONSE = 30


@pytest.fixture(scope="module")
def batch(processing, samples):
    """Twelve images with prompts, and responses of one length."""
    response = (*(8 + index % 20 for index in range(RESPONSE - 1)), 1)
    rows = [Row.of_response(sample, response, sample.id) for sample in samples]
    return collate(rows, [encode_row(row, processing) for row in rows], processing)


@pytest.mark.parametrize("role", ["policy", "critic"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_traced_is_within_a_tenth_of_measured(tiny_model, processing, batch, role, checkpointing):
    vlm = load_vlm(tiny_model)
    module = (
        CriticModule(vlm)
        if role == "critic"
        else PolicyModule(vlm, banned_ids=processing.banned_ids())
    )
    if checkpointing:
        vlm.gradient_checkpointing_enable({"use_reentrant": False})
    module.train()
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    tracker = StorageTracker({"weights": [*module.parameters(), *module.buffers()]})
    with tracker:
        outputs = module(batch)
        (outputs.values_BR if role == "critic" else outputs.logprobs_BR).sum().backward()
    measured = tracker.peak - tracker.at_peak()["weights"]

    architecture = load_architecture(tiny_model)
    rows, length = batch.input_ids_BT.shape
    traced = trace_step(
        architecture,
        role,
        Workload(rows=rows, prompt_tokens=length - RESPONSE, response_tokens=RESPONSE),
        bf16=False,
        gradient_checkpointing=checkpointing,
    )
    vision = vision_bytes(
        architecture.config,
        rows * architecture.image_tokens(),
        trained=not checkpointing,
        bytes_per_element=4,
    )
    error = (sum(traced.values()) + vision) / measured - 1
    print(f"{role}, checkpointing {checkpointing}: traced {error:+.1%} of measured")
    assert abs(error) < 0.1


def test_kept_gradients_are_counted_and_named(tiny_model):
    architecture = load_architecture(tiny_model)
    work = Workload(rows=1, prompt_tokens=4, response_tokens=2)
    kept = trace_step(
        architecture, "policy", work, bf16=False, gradient_checkpointing=False, keep_gradients=True
    )
    # with so few tokens the peak is the backward's end, when nearly all of them exist
    language = sum(p.numel for p in architecture.parameters if p.part == "language")
    assert 0.9 * 4 * language < kept["gradients"] <= 4 * language


def test_logits_exist_one_chunk_at_a_time():
    architecture = load_architecture("smolvlm2-256m")
    width = 4 * architecture.vocab_size
    sizes = []
    for chunk in (64, 128):
        work = Workload(rows=1, prompt_tokens=64, response_tokens=256, chunk_size=chunk)
        sizes.append(trace_step(architecture, "policy", work, train=False)["logits"])
    assert sizes[1] == pytest.approx(2 * sizes[0])
    assert 64 * width <= sizes[0] < 5 * 64 * width


def test_without_a_backward_layers_do_not_add_up(tiny_model):
    architecture = load_architecture(tiny_model)
    work = Workload(rows=8, prompt_tokens=32, response_tokens=16)
    train = trace_step(architecture, "policy", work, gradient_checkpointing=False)
    score = trace_step(architecture, "policy", work, train=False)
    assert sum(score.values()) < 0.3 * sum(train.values())


def test_vision_term_by_hand():
    architecture = load_architecture("llava-1.5-7b")
    # CLIP-L/14 at 336: 576 patches, width 1024, MLP 4096, 24 layers; 8 h + 2 i = 16384 elements
    layer = 576 * (8 * 1024 + 2 * 4096) * 2
    term = vision_bytes(architecture.config, 576, trained=True, bytes_per_element=2)
    assert term == 24 * layer
    assert vision_bytes(architecture.config, 576, trained=False, bytes_per_element=2) == layer


def test_patches_behind_a_token():
    counts = {"llava-1.5-7b": 1, "qwen2.5-vl-7b": 4, "internvl3-8b": 4, "smolvlm2-2.2b": 9}
    for name, count in counts.items():
        assert patches_per_token(load_architecture(name).config) == count
