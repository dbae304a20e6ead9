"""Pretraining of the built-in model's vision tower: every patch learns to name what its cell holds.

A real VLM's tower comes pretrained; this one's does too, here and in seconds, and can then stay
frozen while the language model learns to read it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from trainers.data.drawn_model import HIDDEN_SIZE, PATCH_SIZE, encode_images
from trainers.data.scenes import (
    CELL,
    COLORS,
    IMAGE_SIZE,
    POSITIONS,
    SHAPES,
    Scene,
    draw_scene,
    render,
)
from trainers.schedule import learning_rate_factor

PATCHES = IMAGE_SIZE // PATCH_SIZE
CLASSES = (len(COLORS) + 1, len(SHAPES) + 1, len(POSITIONS))
"""Numbers of classes of a patch: color and shape (0 is an empty cell), and the cell itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionPhase:
    """AdamW on freshly drawn scenes, one-cycle schedule."""

    steps: int = 160
    batch_size: int = 64
    max_lr: float = 4e-3
    warmup_share: float = 0.1


def patch_labels(scenes: list[Scene]) -> Tensor:
    """Classes of every patch's cell, [B, PATCHES**2, 3] in the tower's patch order (row by row)."""
    cells_BC3 = torch.zeros(len(scenes), len(POSITIONS), len(CLASSES), dtype=torch.long)
    cells_BC3[:, :, 2] = torch.arange(len(POSITIONS))
    for index, scene in enumerate(scenes):
        for item in scene.objects:
            cell = cells_BC3[index, POSITIONS.index(item.position)]
            cell[0] = 1 + COLORS.index(item.color)
            cell[1] = 1 + SHAPES.index(item.shape)
    per_cell, columns = CELL // PATCH_SIZE, IMAGE_SIZE // CELL
    cell_of_patch = [
        (row // per_cell) * columns + column // per_cell
        for row in range(PATCHES)
        for column in range(PATCHES)
    ]
    return cells_BC3[:, cell_of_patch]


def pretrain_tower(
    model: LlavaForConditionalGeneration,
    phase: VisionPhase,
    seed: int,
    on_step: Callable[[float], None] = lambda _: None,
) -> float:
    """Train `model`'s tower in place; a linear head on its patch features is thrown away after.

    The features are those that the language model gets: `vision_feature_layer` without the class
    token. `on_step` gets the share of patches with all classes right, after every step; its
    mean over the last ten steps is returned (fresh images, so not a training accuracy).
    """
    rng = random.Random(f"vision-{seed}")
    tower = model.model.vision_tower
    head = nn.Linear(HIDDEN_SIZE, sum(CLASSES))
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)
    recent: list[float] = []
    for step in range(phase.steps):
        scenes = [draw_scene(rng) for _ in range(phase.batch_size)]
        pixels = encode_images([render(scene, rng) for scene in scenes])
        labels_BP3 = patch_labels(scenes)
        hidden = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        logits_BPC = head(hidden[model.config.vision_feature_layer][:, 1:])
        parts = logits_BPC.split(CLASSES, dim=-1)
        loss = torch.stack(
            [
                cross_entropy(part.flatten(0, 1), labels_BP3[..., index].flatten())
                for index, part in enumerate(parts)
            ]
        ).sum()
        factor = learning_rate_factor(
            step, warmup_steps=int(phase.warmup_share * phase.steps), total_steps=phase.steps
        )
        for group in optimizer.param_groups:
            group["lr"] = phase.max_lr * factor
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        guessed = torch.stack([part.argmax(-1) for part in parts], dim=-1)
        recent = [*recent[-9:], float((guessed == labels_BP3).all(-1).float().mean())]
        on_step(recent[-1])
    return sum(recent) / max(len(recent), 1)
