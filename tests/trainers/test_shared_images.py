"""Which features the rows of a batch hold, worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from trainers.batch import Row, collate, encode_row
from trainers.data.noise import ImageNoise
from trainers.shared_images import distinct_images

IMAGE = 7


def item(number: int, images: int) -> SimpleNamespace:
    """A row of `number` image tokens, of that many images."""
    ids = np.array([2, *[IMAGE] * number, 3])
    return SimpleNamespace(
        input_ids=ids, model_inputs={"pixel_values": torch.zeros(images, 1)} if images else {}
    )


def row(*images: str, noise: ImageNoise | None = None) -> Row:
    return Row(id="r", prompt=(), images=images, noise=noise)


def test_features_by_hand():
    # Images a (2 tokens), b and c together (3), none; then a again, and b and c again.
    rows = [row("a"), row("b", "c"), row(), row("a"), row("b", "c")]
    items = [item(2, 1), item(3, 2), item(0, 0), item(2, 1), item(3, 2)]
    inputs, shared = distinct_images(rows, items, IMAGE)
    assert [len(each["pixel_values"]) for each in inputs] == [1, 2]
    assert shared is not None
    assert shared.features_N.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert shared.images_M.tolist() == [0, 1, 2, 0, 1, 2]
    assert shared.num_features == 5


def test_what_is_distinct_is_left_as_it_is():
    rows, items = [row("a"), row("b"), row()], [item(2, 1), item(2, 1), item(0, 0)]
    inputs, shared = distinct_images(rows, items, IMAGE)
    assert shared is None and len(inputs) == 2
    # Drawn for the row: images without a name.
    assert distinct_images([row(), row()], [item(2, 1)] * 2, IMAGE)[1] is None


def test_another_distortion_is_another_image():
    noises = (None, ImageNoise(step=500, key="k"), ImageNoise(step=500, key="k"))
    rows = [row("a", noise=noise) for noise in noises]
    inputs, shared = distinct_images(rows, [item(1, 1)] * 3, IMAGE)
    assert shared is not None and len(inputs) == 2
    assert shared.features_N.tolist() == [0, 1, 1]


def test_a_batch_has_each_image_once(processing, samples):
    rows = [
        Row.of_response(sample, (10, 1), f"{index}")
        for index, sample in enumerate((samples[0], samples[1], samples[0]))
    ]
    encoded = [encode_row(row, processing) for row in rows]
    plain = collate(rows, encoded, processing)
    batch = collate(rows, encoded, processing, share_images=True)
    assert plain.shared is None and batch.shared is not None
    assert len(plain.model_inputs["pixel_values"]) == 3
    assert len(batch.model_inputs["pixel_values"]) == 2
    tokens = int((batch.input_ids_BT == processing.image_token_id).sum())
    assert len(batch.shared.features_N) == tokens == 3 * batch.shared.num_features // 2
    moved = batch.to(torch.device("meta")).shared
    assert moved is not None and moved.features_N.is_meta and moved.images_M.is_meta
