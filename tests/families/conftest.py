"""Tiny folders of every family, prompts with images of different sizes, and a place for results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actors.train_spec import TrainSpec
from tests.families.builders import BUILDERS
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.data.records import Sample, Turn

RESULTS = "FAMILY_RESULTS"
"""Environment variable: the file that measured results are added to."""
SIZES = ((64, 64), (160, 96), (48, 120))
"""Width and height: a square, a wide and a high image, which tile differently."""


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`tiny_folder("qwen2_5_vl")`: a released folder in miniature."""

    @cache
    def make(family: str) -> str:
        if family == "smolvlm":
            pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words")
        return str(BUILDERS[family](tmp_path_factory.mktemp(family)))

    return make


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def prompts(pictures: ImageStore) -> list[Sample]:
    """One image of each size, none, and two and three of different sizes."""
    random = np.random.default_rng(0)

    def picture(width: int, height: int) -> str:
        blocks = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        return pictures.put_image(Image.fromarray(blocks).resize((width, height)))

    square, wide, high = (picture(*size) for size in SIZES)
    asked = [
        ("square", (square,), "Describe the image."),
        ("wide", (wide,), "What do you see?"),
        ("high", (high,), "Is there a red circle?"),
        ("none", (), "What do you see?"),
        ("two", (square, wide), "Describe the image."),
        ("three", (high, wide, square), "Is there a blue square?"),
    ]
    return [
        Sample(id=id, prompt=(Turn(role="user", text=text, num_images=len(images)),), images=images)
        for id, images, text in asked
    ]


@pytest.fixture(scope="session")
def processing_of(tiny_folder, pictures) -> Callable[[str], Processing]:
    """`processing_of("qwen2_5_vl")`: of that family's tiny folder."""
    return cache(lambda family: Processing(tiny_folder(family), pictures))


@pytest.fixture
def spec(tiny_folder, pictures) -> Callable[..., TrainSpec]:
    """`spec("qwen2_5_vl", "critic", bf16=True)`: what a trainer loads."""

    def make(family: str, role: str = "policy", **options: Any) -> TrainSpec:
        return TrainSpec(
            role=role,
            model_dir=tiny_folder(family),
            image_root=str(pictures.root),
            micro_batch_size=4,
            **options,
        )

    return make


@pytest.fixture(scope="session")
def record() -> Callable[[str, str, str | float], None]:
    """`record(family, column, value)`: a measured cell of `docs/models.md`, kept if asked for."""

    def note(family: str, column: str, value: str | float) -> None:
        if (name := os.environ.get(RESULTS)) is None:
            return
        path = Path(name)
        results = json.loads(path.read_text()) if path.is_file() else {}
        results.setdefault(family, {})[column] = value
        path.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")

    return note
