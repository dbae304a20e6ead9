"""From a batch to hidden states: padded or end to end, each image's features made once.

What differs between families is in no branch: the features are taken where the model makes them,
and given to every row that has their image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actors.packing import mrope_positions, packed_inputs, packs
from trainers.batch import Batch
from trainers.shared_images import SharedImages


class FeatureMismatchError(ValueError):
    """A batch's image tokens and the features that its images have differ in number."""


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Of a batch's tokens, row after row."""

    states_KH: Tensor
    """K tokens of a forward: B x T with padding, else those of the rows."""
    starts_B: Tensor
    """Where each row starts."""

    def at(self, rows_N: Tensor, places_N: Tensor) -> Tensor:
        """The states (N, H) at these places of these rows."""
        found: Tensor = self.states_KH[self.starts_B[rows_N] + places_N]
        return found


def hidden_states(vlm: Any, batch: Batch) -> HiddenStates:
    """Last-layer hidden states.

    Raises:
        FeatureMismatchError: the images give more or fewer features than there are image tokens;
            names the rows.
    """
    if packs(vlm):
        inputs = packed_inputs(vlm, batch)
        starts_B = batch.attention_mask_BT.sum(1).cumsum(0) - batch.attention_mask_BT.sum(1)
    else:
        inputs = _padded_inputs(vlm, batch)
        rows, length = batch.input_ids_BT.shape
        starts_B = torch.arange(rows, device=batch.input_ids_BT.device) * length
    try:
        with _once_per_image(vlm.model, batch.shared):
            output = vlm.model(**inputs, **batch.model_inputs, use_cache=False)
    except ValueError as error:
        if "features and image tokens" not in str(error):
            raise
        raise _mismatch(batch, str(error)) from None
    _check_features(output, vlm.config.image_token_id, batch)
    return HiddenStates(output.last_hidden_state.flatten(0, 1), starts_B)


def forward_shape(vlm: Any, batch: Batch) -> tuple[int, int]:
    """Rows and length of what the model is given for the batch; packed, this waits for its device
    to count tokens.
    """
    if packs(vlm):
        return 1, int(batch.attention_mask_BT.sum())
    rows, length = batch.input_ids_BT.shape
    return rows, length


def _padded_inputs(vlm: Any, batch: Batch) -> dict[str, Any]:
    inputs = {
        "input_ids": batch.input_ids_BT,
        "attention_mask": batch.attention_mask_BT,
        **batch.token_inputs,
    }
    # Else the model makes them itself, of the images that it is given.
    if batch.shared is not None and (positions := mrope_positions(vlm, batch)) is not None:
        inputs["position_ids"] = positions
    return inputs


@contextmanager
def _once_per_image(model: Any, shared: SharedImages | None) -> Iterator[None]:
    """Inside, the features that `model` makes of distinct images are given to every row that has
    them; gradients of the rows add up. Does nothing for a batch that has every row's images.
    """
    if shared is None:
        yield
        return
    original = model.get_image_features

    def features(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        output.pooler_output = _of_rows(output.pooler_output, shared)
        if (levels := getattr(output, "deepstack_features", None)) is not None:
            output.deepstack_features = [_of_rows(level, shared) for level in levels]
        return output

    model.get_image_features = features
    try:
        yield
    finally:
        del model.get_image_features  # the class's own shows again


def _of_rows(made: Any, shared: SharedImages) -> Any:
    """Features of the distinct images, as the model returned them, for every row's images: a tensor
    (tiles, features, H), or one (features, H) for each image, which here become a single one.
    """
    whole = made if isinstance(made, Tensor) else torch.cat(list(made))
    flat_NH = whole.flatten(0, -2)
    if len(flat_NH) != shared.num_features:
        raise ValueError(
            "Image features and image tokens do not match, tokens of distinct images: "
            f"{shared.num_features}, features: {len(flat_NH)}"
        )
    rows_NH = flat_NH[shared.features_N]
    return rows_NH.unflatten(0, (-1, *whole.shape[1:-1])) if isinstance(made, Tensor) else [rows_NH]


def _check_features(output: Any, image_token_id: int, batch: Batch) -> None:
    """Most families compare the numbers themselves; Idefics3 and SmolVLM drop what is left over."""
    if "pixel_values" not in batch.model_inputs:
        return  # what is there then is a spare row's (`actors.spare_image`)
    features = getattr(output, "image_hidden_states", None)
    features = getattr(features, "pooler_output", features)
    if not isinstance(features, Tensor):
        return
    number = features.numel() // features.shape[-1]
    tokens = int((batch.input_ids_BT == image_token_id).sum())
    if number != tokens:
        raise _mismatch(batch, f"tokens: {tokens}, features: {number}")


def _mismatch(batch: Batch, what: str) -> FeatureMismatchError:
    rows = f"row{'s' if len(batch.ids) > 1 else ''} {', '.join(batch.ids[:4])}"
    more = f" and {len(batch.ids) - 4} more" if len(batch.ids) > 4 else ""
    return FeatureMismatchError(
        f"{rows}{more}: image tokens and image features differ in number ({what}); the folder's "
        "processor does not fit its model"
    )
