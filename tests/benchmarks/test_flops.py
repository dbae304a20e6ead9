"""FLOPs by hand, and peaks by name."""

from __future__ import annotations

import pytest

from benchmarks.flops import (
    Work,
    language_flops,
    peak_flops,
    step_flops,
    utilisation,
    vision_flops,
)
from benchmarks.shapes import TINY, miniature
from cluster.planner.architectures import load_architecture


@pytest.fixture
def llava(tmp_path):
    """Two text layers of width 64, inner 96, 2 heads of 32 and 1 for keys and values, 160 words; a
    tower of three layers of width 64 and 16 patches.
    """
    folder = miniature("llava-1.5-7b", TINY["llava-1.5-7b"], tmp_path)
    return load_architecture(str(folder))


def test_the_language_model_by_hand(llava):
    # A layer: query and output 64 x 64 each, key and value 64 x 32 each, MLP 3 times 64 x 96.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
    work = Work((10, 6), targets=5)
    expected = 2 * 2 * layer * 16  # 2 layers, 16 tokens
    expected += 2 * 160 * 64 * 5  # the head at 5 targets
    expected += 2 * 2 * 64 * (10**2 + 6**2)  # scores and sums, half under the mask
    assert language_flops(llava, work) == expected


def test_the_tower_by_hand(llava):
    # A layer: 4 times 64 x 64, MLP 2 times 64 x 96; the patch embedding 64 x 3 x 14 x 14; the
    # projector 64 x 64 twice. 16 patches, which all see each other.
    weights = 3 * (4 * 64 * 64 + 2 * 64 * 96) + 64 * 3 * 14 * 14 + 2 * 64 * 64
    expected = 2 * weights * 16 + 4 * 3 * 64 * 16 * 16
    assert vision_flops(llava, Work((), 0, image_tokens=16)) == expected
    assert vision_flops(llava, Work((10,), 5)) == 0


def test_a_step_is_three_forwards_and_with_adapters_two(llava):
    work = Work((10,), 5, image_tokens=16)
    text, tower = language_flops(llava, work), vision_flops(llava, work)
    assert step_flops(llava, work) == 3 * text + 3 * tower
    assert step_flops(llava, work, vision=False) == 3 * text + tower
    assert step_flops(llava, work, lora=True) == 2 * text + tower


def test_a_short_row_is_six_times_parameters_and_tokens():
    # Kaplan's 6 N D, with N all parameters but the input embedding; attention adds under 1 %.
    shape = load_architecture("llava-1.5-7b")
    language = [p for p in shape.parameters if p.part == "language" and len(p.shape) > 1]
    number = sum(p.numel for p in language if "embed_tokens" not in p.name)
    found = step_flops(shape, Work((64,), targets=64), vision=False)
    assert found == pytest.approx(6 * number * 64, rel=0.01)


@pytest.mark.parametrize(
    ("name", "tokens", "expected"),
    [
        # 12 layers of 4 x 768^2 and 2 x 768 x 3072, patches of 3 x 16 x 16; 32 x 32 patches that
        # all see each other; 16 of them are one token of the projector, 16 x 768 wide, to 960.
        (
            "smolvlm2-500m",
            64,
            2 * 1024 * (12 * (4 * 768**2 + 2 * 768 * 3072) + 768 * 3 * 16**2)
            + 2 * 64 * (16 * 768 * 960)
            + 4 * 12 * 768 * 1024**2,
        ),
        # 32 layers of 4 x 1280^2 and 3 x 1280 x 3420, patches of 2 frames; 4 patches are one token
        # of the merger, 5120 wide, to 2048; 4 layers see all 1564 patches, 28 a window of 8 x 8.
        (
            "qwen2.5-vl-3b",
            391,
            2 * 1564 * (32 * (4 * 1280**2 + 3 * 1280 * 3420) + 1280 * 3 * 2 * 14**2)
            + 2 * 391 * (5120**2 + 5120 * 2048)
            + 4 * 1280 * 1564 * (4 * 1564 + 28 * 64),
        ),
        # 24 layers of 4 x 1024^2 and 2 x 1024 x 4096; each of 24 x 24 patches is a token.
        (
            "llava-1.5-7b",
            576,
            2 * 576 * (24 * (4 * 1024**2 + 2 * 1024 * 4096) + 1024 * 3 * 14**2)
            + 2 * 576 * (1024 * 4096 + 4096**2)
            + 4 * 24 * 1024 * 576**2,
        ),
    ],
)
def test_every_familys_tower_by_hand(name, tokens, expected):
    assert vision_flops(load_architecture(name), Work((), 0, image_tokens=tokens)) == expected


def test_a_critic_has_no_vocabulary_head(llava):
    work = Work((10, 6), targets=5)
    # One score of width 64 at each of 5 targets, in place of 160.
    saved = 2 * (160 - 1) * 64 * 5
    assert language_flops(llava, work) - language_flops(llava, work, head=False) == saved
    assert step_flops(llava, work) - step_flops(llava, work, head=False) == 3 * saved


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("cpu", None),
        ("NVIDIA L400", None),
    ],
)
def test_the_peak_is_found_by_the_drivers_name(name, peak):
    assert peak_flops(name) == peak


def test_utilisation_is_unknown_where_the_peak_is():
    assert utilisation(756e12, 2.0, "NVIDIA H100 PCIe") == 0.5
    assert utilisation(1e12, 1.0, "cpu") is None
