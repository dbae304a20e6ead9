"""Rows end to end, and each image's features made once: the same values and gradients as padded
rows with images of their own, for every family.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from actors.forward import forward_shape, hidden_states
from actors.modules import CriticModule, PolicyModule, RewardModule, ScoreHead, load_vlm
from actors.packing import ATTENTION, packed_inputs, use_packing
from tests.families.builders import BUILDERS
from trainers.batch import Row, collate, encode_row

FAST = ("llava", "qwen2_5_vl", "idefics3")
FAMILIES = [
    pytest.param(family, marks=() if family in FAST else (pytest.mark.slow,)) for family in BUILDERS
]
LENGTHS = (3, 17, 9)
TOLERANCE = 1e-5
"""Of values, and of gradients against the largest one of their tensor."""


def rows_of(processing, prompts):
    """Three answers to each prompt: one, two and three images of different sizes, and none."""
    banned = {*processing.banned_ids(), processing.eos_id}
    free = [token for token in range(processing.vocab_size) if token not in banned]
    rows = []
    for sample in prompts:
        for length in LENGTHS:
            ids = random.Random(f"{sample.id}{length}").choices(free, k=length)
            rows.append(Row.of_response(sample, tuple(ids), f"{sample.id}-{length}"))
    random.Random(0).shuffle(rows)  # a prompt's rows need not follow each other
    return rows


def build(role, vlm, processing):
    """The module of a role; heads that start at zero get values, else nothing would be compared."""
    torch.manual_seed(0)
    if role == "policy":
        return PolicyModule(vlm, banned_ids=processing.banned_ids(), temperature=0.8)
    if role == "critic":
        module = CriticModule(vlm)
        torch.nn.init.normal_(module.head.weight)
        return module
    head = ScoreHead(vlm.config.get_text_config().hidden_size)
    torch.nn.init.normal_(head.out.weight)
    return RewardModule(vlm, head)


def step(role, folder, processing, rows, *, packing, share):
    """Values, and gradients by parameter, of a loss that weighs every value otherwise."""
    vlm = load_vlm(folder)
    if packing:
        use_packing(vlm)
    module = build(role, vlm, processing).train()
    encoded = [encode_row(row, processing) for row in rows]
    batch = collate(rows, encoded, processing, share_images=share)
    assert (batch.shared is not None) == share
    shape = (1, sum(len(item.input_ids) for item in encoded)) if packing else None
    assert forward_shape(vlm, batch) == (shape or tuple(batch.input_ids_BT.shape))
    outputs = module(batch)
    values = [value for value in outputs if value is not None]
    torch.manual_seed(1)
    torch.stack([(value * torch.randn_like(value)).sum() for value in values]).sum().backward()
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return [value.detach() for value in values], gradients


def assert_equal(left, right):
    for one, other in zip(left[0], right[0], strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)
    assert left[1].keys() == right[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in left[1].values())
    for name, gradient in left[1].items():
        gap = float((gradient - right[1][name]).abs().max())
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        assert gap < 10 * TOLERANCE * scale, (name, gap, scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_padding_and_shared_images_change_nothing(processing_of, tiny_folder, prompts, family):
    processing, folder = processing_of(family), tiny_folder(family)
    rows = rows_of(processing, prompts)
    plain = step("policy", folder, processing, rows, packing=False, share=False)
    assert any("vis" in name and bool(grad.any()) for name, grad in plain[1].items())
    for packing, share in ((True, False), (False, True), (True, True)):
        assert_equal(plain, step("policy", folder, processing, rows, packing=packing, share=share))


@pytest.mark.parametrize("role", ["critic", "reward"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_of_critic_and_reward_model(processing_of, tiny_folder, prompts, family, role):
    processing, folder = processing_of(family), tiny_folder(family)
    rows = rows_of(processing, prompts)
    plain = step(role, folder, processing, rows, packing=False, share=False)
    assert_equal(plain, step(role, folder, processing, rows, packing=True, share=True))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm"])
def test_rows_attend_as_under_transformers_own_mask(processing_of, tiny_folder, prompts, family):
    """Its SDPA takes the same positions for rows end to end, and masks all tokens by all."""
    processing = processing_of(family)
    rows = rows_of(processing, prompts)
    batch = collate(rows, [encode_row(row, processing) for row in rows], processing)
    vlm = load_vlm(tiny_folder(family))
    with torch.no_grad():
        inputs = {k: v for k, v in packed_inputs(vlm, batch).items() if k != "row_lengths"}
        masked = vlm.model(**inputs, **batch.model_inputs, use_cache=False).last_hidden_state[0]
        use_packing(vlm)
        found = hidden_states(vlm, batch)
    assert ATTENTION not in vlm.config.to_json_string(use_diff=False)  # a saved folder is plain
    torch.testing.assert_close(found.states_KH, masked, atol=TOLERANCE, rtol=TOLERANCE)
    assert found.starts_B.tolist()[:2] == [0, int(batch.last_B[0]) + 1]


def test_mrope_positions_start_again_with_every_row(processing_of, tiny_folder, prompts):
    # <|vision_start|> and a 2 x 2 image of 4 tokens, which takes 2 positions; then text, and the
    # response behind it, count on on all axes alike.
    processing = processing_of("qwen2_5_vl")
    rows = [Row.of_response(prompts[index], (100, 101, 102), f"{index}") for index in (0, 3, 0)]
    encoded = [encode_row(row, processing) for row in rows]
    batch = collate(rows, encoded, processing, share_images=True)
    vlm = load_vlm(tiny_folder("qwen2_5_vl"))
    inputs = packed_inputs(vlm, batch)
    lengths = [len(item.input_ids) for item in encoded]
    assert inputs["row_lengths"] == tuple(lengths)
    first, none, again = inputs["position_ids"][:, 0].split(lengths, dim=1)
    text, *axes = first.tolist()
    assert text == list(range(lengths[0]))
    end = lengths[0] - 2  # 4 tokens took 2 positions
    assert [axis[-3:] for axis in axes] == [[end - 3, end - 2, end - 1]] * 3
    assert torch.equal(first, again)
    assert torch.equal(none, torch.arange(lengths[1]).expand(4, -1))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_rank_without_images_runs_the_tower(processing_of, tiny_folder, prompts, family):
    from actors.spare_image import run_tower_always

    processing = processing_of(family)
    rows = [Row.of_response(prompts[3], (100, 101, 102)[:n], f"{n}") for n in (3, 1)]
    batch = collate(rows, [encode_row(row, processing) for row in rows], processing)
    values = []
    for ranks in (1, 2):
        vlm = load_vlm(tiny_folder(family))
        use_packing(vlm)
        run_tower_always(vlm, tiny_folder(family), ranks)
        values.append(PolicyModule(vlm, banned_ids=[])(batch).logprobs_BR)
    torch.testing.assert_close(*values, atol=TOLERANCE, rtol=0)
    values[1].sum().backward()
    tower = [p.grad for n, p in vlm.named_parameters() if "vision" in n or "visual" in n]
    assert any(grad is not None for grad in tower)
    assert all(grad is None or not grad.any() for grad in tower)


def test_a_row_longer_than_the_window_of_attention(processing_of, tiny_folder, prompts):
    from trainers.data.errors import UserError

    processing = processing_of("qwen2_5_vl")
    rows = [Row.of_response(prompts[3], (100,) * 20, "r")] * 2
    batch = collate(rows, [encode_row(row, processing) for row in rows], processing)
    vlm = load_vlm(tiny_folder("qwen2_5_vl"))
    use_packing(vlm)
    for layer in vlm.get_decoder().layers:
        layer.self_attn.sliding_window = 8
    with pytest.raises(UserError, match=r"train.packing: a row has \d+ tokens.*packing=false"):
        PolicyModule(vlm, banned_ids=[])(batch)


def test_a_shared_image_with_too_few_features_names_the_rows(processing_of, tiny_folder, prompts):
    processing = processing_of("llava")
    rows = [Row.of_response(prompts[0], (100,), f"{index}") for index in range(2)]
    batch = collate(
        rows, [encode_row(row, processing) for row in rows], processing, share_images=True
    )
    assert batch.shared is not None
    batch.shared = replace(batch.shared, num_features=batch.shared.num_features - 1)
    with pytest.raises(ValueError, match=r"^rows 0, 1: .* differ in number"):
        hidden_states(load_vlm(tiny_folder("llava")), batch)
