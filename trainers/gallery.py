"""`gallery.json`: held-out images with the answers of several models, for the report."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from trainers.comparison import SCHEMA_VERSION
from trainers.json_files import load_as


class GalleryItem(BaseModel):
    """One held-out image with the answers of several models."""

    model_config = ConfigDict(extra="forbid")

    image_png_base64: str
    truth: dict[str, Any]
    """The sample's ground truth; `objects` holds [color, shape, position] lists."""
    answers: dict[str, str]
    """`base`, `honest` or a method's name -> its answer."""
    prompt: str = ""


class Gallery(BaseModel):
    """The whole of `gallery.json`; written by `trainers.comparison.save`."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    items: list[GalleryItem] = Field(default_factory=list)


def gallery_item(
    png: bytes, truth: Mapping[str, Any], answers: Mapping[str, str], prompt: str = ""
) -> GalleryItem:
    """A gallery item from the bytes of a PNG file."""
    return GalleryItem(
        image_png_base64=base64.b64encode(png).decode("ascii"),
        truth=dict(truth),
        answers=dict(answers),
        prompt=prompt,
    )


def load_gallery(path: Path) -> Gallery:
    """Read `gallery.json`; `UserError` names the file and the first wrong key."""
    return load_as(Gallery, path)
