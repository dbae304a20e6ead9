"""Ranks whose rows have no image run the vision tower all the same.

Ranks move in step: ZeRO gathers parameters and reduces gradients layer by layer, and a rank that
skips the tower, because its micro-batch is all text, leaves the others waiting for ever. So a batch
without an image gets one more row that has one (a blank), whose hidden states are thrown away. It
has no target, so that neither loss nor gradient changes: the tower's part of it is zero.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.data.records import Turn

SIDE = 64
"""Pixels of the blank."""


@dataclass(frozen=True, slots=True)
class SpareRow:
    """An encoded prompt of one blank image."""

    input_ids_T: Tensor
    model_inputs: dict[str, Tensor]
    token_inputs: dict[str, Tensor]
    """What some families are given per token beside the ids, (1, T)."""


def spare_row(model_dir: str) -> SpareRow:
    """The row, as the model's own processor makes it."""
    with tempfile.TemporaryDirectory() as folder:
        store = ImageStore(folder)
        blank = store.put_image(Image.new("RGB", (SIDE, SIDE)))
        turn = Turn(role="user", text="", num_images=1)
        processing = Processing(model_dir, store)
        encoded = processing.encode("spare", (turn,), (blank,), response_ids=())
        ids_T = torch.from_numpy(encoded.input_ids)
        return SpareRow(ids_T, encoded.model_inputs, processing.token_inputs(ids_T[None]))


def run_tower_always(vlm: Any, model_dir: str, ranks: int) -> None:
    """Hook `vlm.model`, so that every forward of it passes the tower; one rank alone need not."""
    # A twin of a hooked model has its hooks.
    if ranks == 1 or getattr(vlm.model, "has_spare_row", False):
        return
    vlm.model.has_spare_row = True
    spare = spare_row(model_dir)
    added: list[tuple[int, int]] = []
    """Rows and length of the batch that has it now; empty for one that needs none."""

    def before(_: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        added.clear()
        if spare.model_inputs.keys() & inputs.keys():
            return args, inputs
        added.append(inputs["input_ids"].shape)
        packed = inputs["attention_mask"] is None
        return args, (_with_row_behind if packed else _with_row)(inputs, spare)

    def after(_: Any, _args: Any, output: Any) -> Any:
        if added:
            # The row stays in the graph: its backward passes the tower, with zeros.
            rows, length = added[0]
            output.last_hidden_state = output.last_hidden_state[:rows, :length]
        return output

    vlm.model.register_forward_pre_hook(before, with_kwargs=True)
    vlm.model.register_forward_hook(after)


def _with_row(inputs: dict[str, Any], spare: SpareRow) -> dict[str, Any]:
    ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"]
    length = max(ids_BT.shape[1], len(spare.input_ids_T))
    row_T = spare.input_ids_T.to(ids_BT.device)
    missing, left = length - ids_BT.shape[1], length - len(row_T)
    return {
        **inputs,
        "input_ids": torch.cat([pad(ids_BT, (0, missing)), pad(row_T, (0, left))[None]]),
        "attention_mask": torch.cat(
            [pad(mask_BT, (0, missing)), pad(torch.ones_like(row_T), (0, left))[None].to(mask_BT)]
        ),
        **{name: tensor.to(ids_BT.device) for name, tensor in spare.model_inputs.items()},
        **{
            name: torch.cat(
                [pad(inputs[name], (0, missing)), pad(row.to(ids_BT.device), (0, left))]
            )
            for name, row in spare.token_inputs.items()
        },
    }


def _with_row_behind(inputs: dict[str, Any], spare: SpareRow) -> dict[str, Any]:
    """The same for rows that lie end to end (`actors.packing`)."""
    ids, positions = inputs["input_ids"], inputs["position_ids"]
    places_T = torch.arange(len(spare.input_ids_T), device=ids.device)
    return {
        **inputs,
        "input_ids": torch.cat([ids, spare.input_ids_T.to(ids.device)[None]], 1),
        "position_ids": torch.cat([positions, places_T.expand(*positions.shape[:-1], -1)], -1),
        "row_lengths": (*inputs["row_lengths"], len(places_T)),
        **{name: tensor.to(ids.device) for name, tensor in spare.model_inputs.items()},
        **{
            name: torch.cat([inputs[name], row.to(ids.device)], 1)
            for name, row in spare.token_inputs.items()
        },
    }
