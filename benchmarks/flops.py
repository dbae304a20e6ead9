"""Floating point operations of a step, and what share of a card's they are (MFU).

*Model* FLOPs: what the mathematics needs, whatever is computed twice (gradient checkpointing) or not
at all (padding). Per row of T tokens with R targets, P patches in its images:

    forward  = 2 N_text T + 2 V H R + 2 L D T^2        language: layers, head on targets, attention
             + 2 N_tower P + 4 L_v H_v P P_w           tower, which attends P_w patches each
             + 2 N_projector I                         projector, on the I tokens of the images
    backward = 2 forward, of the parts that are trained; adapters and frozen parts need no gradient
               of their weights: 1 forward for what lies above the lowest trained part

2 a parameter and token: Kaplan et al. 2020 (arXiv:2001.08361), section 2.1, whose 6 N D is this with
its backward. Attention: scores and their sum over values are 2 T^2 D each, half of it under the causal
mask; PaLM (arXiv:2204.02311), appendix B, counts 12 L D T a token without halving. Limiting case: one
short row without an image and with every token a target gives 6 N T, N without the input embedding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from cluster.planner.architectures import Architecture
from cluster.planner.image_tokens import patches_per_token

PEAK_BF16: dict[str, float] = {
    "h100": 989e12,
    "h100 pcie": 756e12,
    "h100 nvl": 835e12,
    "h200": 989e12,
    "h200 nvl": 835e12,
    "a100": 312e12,
    "a40": 150e12,
    "l40s": 362e12,
    "l4": 121e12,
    "a10": 125e12,
    "4090": 165e12,
    "3090": 71e12,
}
"""Dense bfloat16 FLOP/s with float32 accumulation, from NVIDIA's data sheets (a board's own,
where the driver's name says which; SXM otherwise). A name that holds several of these is the
longest."""
PROJECTOR = r"multi_modal_projector|connector|merger"
"""Names of what takes the tower's output to the language model, in the families benchmarked: it sees
one row where patches have been merged into a token."""


@dataclass(frozen=True, slots=True)
class Work:
    """What was forwarded, all rows together."""

    lengths: tuple[int, ...]
    """Tokens of each row, images expanded, without padding."""
    targets: int
    """Tokens that the head is applied to."""
    image_tokens: int = 0


def _shapes(architecture: Architecture) -> tuple[int, int, int]:
    """Parameters that a text token, a patch in the tower, and an image's token in the projector is
    multiplied by.
    """
    text = tower = projector = 0
    for parameter in architecture.parameters:
        if len(parameter.shape) < 2 or re.search(r"embed_tokens|lm_head", parameter.name):
            continue
        if parameter.part == "language":
            text += parameter.numel
        elif re.search(PROJECTOR, parameter.name):
            projector += parameter.numel
        elif "position_embedding" not in parameter.name:
            tower += parameter.numel
    return text, tower, projector


def language_flops(architecture: Architecture, work: Work, *, head: bool = True) -> float:
    """One forward of the language model; a critic has no vocabulary `head`, and what is in its place
    has one row.
    """
    text, _, _ = _shapes(architecture)
    width = architecture.num_attention_heads * architecture.head_dim
    attention = 2 * architecture.num_text_layers * width * sum(n**2 for n in work.lengths)
    rows = architecture.vocab_size if head else 1
    scores = 2 * rows * architecture.text_hidden_size * work.targets
    return float(2 * text * sum(work.lengths) + scores + attention)


def vision_flops(architecture: Architecture, work: Work) -> float:
    """One forward of tower and projector."""
    _, tower, projector = _shapes(architecture)
    config: Any = architecture.config.vision_config
    patches = work.image_tokens * patches_per_token(architecture.config)
    layers = getattr(config, "num_hidden_layers", None) or config.depth
    whole = _patches_of_one(architecture, config)
    window = getattr(config, "window_size", None)
    attended = float(whole)
    if window is not None:  # Qwen2.5-VL: most layers see a window of so many pixels
        full = len(config.fullatt_block_indexes)
        inside = min(whole, (window // config.patch_size) ** 2)
        attended = (full * whole + (layers - full) * inside) / layers
    attention = 4 * layers * config.hidden_size * patches * attended
    return float(2 * tower * patches + 2 * projector * work.image_tokens + attention)


def _patches_of_one(architecture: Architecture, config: Any) -> int:
    """Patches that see each other: an image's, or a tile's."""
    side = getattr(config, "image_size", None)
    if isinstance(side, int):
        return int((side // config.patch_size) ** 2)
    return architecture.image_tokens() * patches_per_token(architecture.config)


def step_flops(
    architecture: Architecture,
    work: Work,
    *,
    lora: bool = False,
    vision: bool = True,
    head: bool = True,
) -> float:
    """Forward and backward of a training step.

    Args:
        lora: only adapters on the language model are trained, whose own FLOPs are left out.
        vision: tower and projector are trained, too.
        head: over the vocabulary; a critic has none.
    """
    language = language_flops(architecture, work, head=head)
    tower = vision_flops(architecture, work)
    if lora:
        return 2 * language + tower
    return 3 * language + (3 if vision else 1) * tower


def peak_flops(device: str) -> float | None:
    """Of a card by the name that the driver gives; None for one that is not listed, or a CPU."""
    name = device.lower()
    found = [key for key in PEAK_BF16 if re.search(rf"(?<![a-z0-9]){key}(?![0-9a-z])", name)]
    return PEAK_BF16[max(found, key=len)] if found else None


def utilisation(flops: float, seconds: float, device: str) -> float | None:
    """Share of the card's peak; None where that is not known."""
    peak = peak_flops(device)
    return None if peak is None or seconds <= 0 else flops / seconds / peak
