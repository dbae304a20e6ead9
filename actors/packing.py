"""Rows end to end, without padding: each attends to itself alone.

The rows of a micro-batch become one row; positions start again with each of them, and so does
attention. Transformers knows such a row by its positions, but under SDPA it makes a mask of all
tokens by all tokens of it. So attention is registered with it under a name of its own: SDPA once
for each row, causal, without any mask, as many operations as the rows have by themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainers.batch import Batch
from trainers.data.errors import UserError

ATTENTION = "quartet_packed_sdpa"
"""The attention's name in transformers' registry."""


def use_packing(vlm: Any) -> None:
    """Let the language model attend within rows that lie end to end. Padded rows it treats as
    before.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, _mask)
    vlm.get_decoder().set_attn_implementation(ATTENTION)


def packs(vlm: Any) -> bool:
    """Whether `use_packing` was called on the model."""
    return bool(vlm.get_decoder().config._attn_implementation == ATTENTION)


def packed_inputs(vlm: Any, batch: Batch) -> dict[str, Any]:
    """What `vlm.model` is given for the batch's rows end to end, but for the images.

    `row_lengths` goes through the layers to the attention. K tokens of all rows: ids (1, K), and
    positions (1, K), or with M-RoPE (4, 1, K), those of the text first, as transformers wants them.
    """
    real_BT = batch.attention_mask_BT.bool()
    places_BT = torch.arange(real_BT.shape[1], device=real_BT.device).expand(real_BT.shape)
    positions = places_BT[real_BT][None]
    if (axes_3BT := mrope_positions(vlm, batch)) is not None:
        positions = torch.cat([positions[None], axes_3BT[:, real_BT][:, None]])
    return {
        "input_ids": batch.input_ids_BT[real_BT][None],
        "attention_mask": None,
        "position_ids": positions,
        "row_lengths": tuple((batch.last_B + 1).tolist()),
        **{name: tensor[real_BT][None] for name, tensor in batch.token_inputs.items()},
    }


def mrope_positions(vlm: Any, batch: Batch) -> Tensor | None:
    """Positions (3, B, T) of a family with M-RoPE, by the model's own function; else None."""
    if (positions := getattr(vlm.model, "get_rope_index", None)) is None:
        return None
    grid = batch.model_inputs.get("image_grid_thw")
    if grid is not None and batch.shared is not None:
        grid = grid[batch.shared.images_M]  # every row's, in order
    found: Tensor = positions(
        batch.input_ids_BT,
        image_grid_thw=grid,
        attention_mask=batch.attention_mask_BT,
        **batch.token_inputs,
    )[0]
    return found


def _mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """None for packed rows, which have no mask of padding; else SDPA's."""
    from transformers.masking_utils import sdpa_mask

    if attention_mask is None:
        return None
    mask: Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, **kwargs)
    return mask


def _attend(
    module: Any,
    query_BhTd: Tensor,
    key_BhTd: Tensor,
    value_BhTd: Tensor,
    attention_mask: Tensor | None,
    row_lengths: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA over each row by itself; B is 1 then.

    Raises:
        UserError: a row is longer than the model's window of attention, which needs a mask.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if row_lengths is None:
        found: Tensor = sdpa_attention_forward(
            module, query_BhTd, key_BhTd, value_BhTd, attention_mask, **kwargs
        )[0]
        return found, None
    if sliding_window is not None and max(row_lengths) > sliding_window:
        raise UserError(
            f"train.packing: a row has {max(row_lengths)} tokens, and the model attends to the "
            f"last {sliding_window} alone; set train.packing=false"
        )
    tensors = (query_BhTd, key_BhTd, value_BhTd)
    rows = zip(*(tensor.split(row_lengths, dim=2) for tensor in tensors), strict=True)
    parts = [sdpa_attention_forward(module, *row, None, **kwargs)[0] for row in rows]
    return torch.cat(parts, dim=1), None
