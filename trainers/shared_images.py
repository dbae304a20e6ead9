"""Rows of a batch that have the same images: each image is in it once.

What makes images the same is their names, which are of their content, and their distortion. Rows
are compared by all images that they have: pairs, rollouts of a prompt and questions about one
picture.

Axes: N image tokens of all rows, M images of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainers.data.processing import Encoded

if TYPE_CHECKING:
    from trainers.batch import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedImages:
    """Which features the rows of a batch hold, where its `model_inputs` have each image once."""

    features_N: Tensor
    """For every image token, row by row, its feature among those of the distinct images."""
    images_M: Tensor
    """For every image of every row, its place among the distinct ones."""
    num_features: int
    """Of the distinct images together."""

    def to(self, device: torch.device) -> SharedImages:
        """The same on `device`."""
        features_N, images_M = (t.to(device, non_blocking=True) for t in self.tensors())
        return replace(self, features_N=features_N, images_M=images_M)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both of them."""
        return self.features_N, self.images_M


def distinct_images(
    rows: Sequence[Row], encoded: Sequence[Encoded], image_token_id: int
) -> tuple[list[dict[str, Tensor]], SharedImages | None]:
    """Each set of images that rows have, once, and which of their features each row holds; None if
    all are distinct, or were drawn for their row and have no name.
    """
    inputs: list[dict[str, Tensor]] = []
    starts: dict[Any, tuple[int, int]] = {}
    features: list[Tensor] = []
    places: list[Tensor] = []
    num_features = num_images = num_rows = 0
    for row, item in zip(rows, encoded, strict=True):
        if not item.model_inputs:
            continue
        if not row.images:
            return [each.model_inputs for each in encoded], None
        num_rows += 1
        number = int((item.input_ids == image_token_id).sum())
        key = (row.images, row.noise)
        if key not in starts:
            starts[key] = num_features, num_images
            inputs.append(item.model_inputs)
            num_features += number
            num_images += len(row.images)
        feature, image = starts[key]
        features.append(torch.arange(feature, feature + number))
        places.append(torch.arange(image, image + len(row.images)))
    if len(inputs) == num_rows:
        return inputs, None
    return inputs, SharedImages(
        features_N=torch.cat(features), images_M=torch.cat(places), num_features=num_features
    )
