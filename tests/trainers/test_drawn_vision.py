"""The tower's pretraining: labels by hand, and a tower that learns what is where."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("transformers")

from trainers.data.drawn_model import build_model
from trainers.data.scenes import COLORS, SHAPES, Scene, Shape, draw_scene
from trainers.drawn_vision import CLASSES, VisionPhase, patch_labels, pretrain_tower


def test_patch_labels_by_hand() -> None:
    scene = Scene((Shape("blue", "cross", "top-right"), Shape("red", "circle", "bottom-left")))
    labels_BP3 = patch_labels([scene, Scene(())])
    assert labels_BP3.shape == (2, 16, 3)
    color, shape, cell = labels_BP3[0].unbind(-1)
    blue, red = 1 + COLORS.index("blue"), 1 + COLORS.index("red")
    cross, circle = 1 + SHAPES.index("cross"), 1 + SHAPES.index("circle")
    # 4 x 4 patches, 2 x 2 of them to a cell
    assert color.view(4, 4).tolist() == [[0, 0, blue, blue]] * 2 + [[red, red, 0, 0]] * 2
    assert shape.view(4, 4).tolist() == [[0, 0, cross, cross]] * 2 + [[circle, circle, 0, 0]] * 2
    assert cell.view(4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    assert not labels_BP3[1, :, :2].any()


def test_labels_stay_below_the_number_of_classes() -> None:
    rng = random.Random(0)
    labels_BP3 = patch_labels([draw_scene(rng) for _ in range(200)])
    assert tuple((labels_BP3.amax((0, 1)) + 1).tolist()) == CLASSES


def test_the_tower_learns_and_nothing_else_changes() -> None:
    model = build_model(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen: list[float] = []
    phase = VisionPhase(steps=40, batch_size=32)
    accuracy = pretrain_tower(model, phase, 0, seen.append)
    assert len(seen) == 40
    # all three classes right by chance: about one patch in ten, an empty one (4 cells, half empty)
    assert accuracy > 0.5 > seen[0]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all("vision_tower" in name for name in changed)
