"""Rows and batches: from judged text to the tensors that a model and a loss see.

A `Row` is one sequence (prompt, images, tokens to learn or to score) with per-token signals; it is
plain data and travels over Ray. A `Group` is what must stay in one minibatch (one row for PPO,
chosen and rejected for DPO). A `Batch` is tensors and exists only inside a process that holds a
model.

Axes: B rows, T sequence, R target tokens of the longest row, N all target tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainers.data.noise import ImageNoise
from trainers.data.processing import Encoded, Processing
from trainers.data.records import Sample, Turn
from trainers.logprobs import shift_targets
from trainers.shared_images import SharedImages, distinct_images


@dataclass(slots=True, kw_only=True)
class Row:
    """One sequence. Exactly one of `response_ids` and `turns` says what its target tokens are."""

    id: str
    prompt: tuple[Turn, ...]
    images: tuple[str, ...]
    response_ids: tuple[int, ...] | None = None
    """Sampled tokens, EOS included, exactly as the engine sampled them (never re-tokenised)."""
    turns: tuple[Turn, ...] = ()
    """Text that follows the prompt; every assistant turn in it is a target."""
    noise: ImageNoise | None = None
    """Distorts the images as the model sees them; None leaves them exactly as they are."""
    greedy: bool = False
    """Asks the policy for `target_ids` before training: its likeliest token at each place."""
    target_ids: np.ndarray | None = None
    """Tokens whose log-probability is wanted at the target places, where these are not the row's
    own: the row is then the prefix that is teacher-forced."""
    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    """Signals, one float per target token: `old_logprobs`, `ref_logprobs`, `advantages`, ..."""
    scalars: dict[str, float] = field(default_factory=dict)
    """Signals of the row: `score`, `weight`, ..."""

    @classmethod
    def of_response(
        cls, sample: Sample, response_ids: tuple[int, ...], id: str, **scalars: float
    ) -> Row:
        """A row whose targets are a sampled response."""
        return cls(
            id=id,
            prompt=sample.prompt,
            images=sample.images,
            response_ids=response_ids,
            scalars=scalars,
        )


Group = tuple[Row, ...]


@dataclass(slots=True, kw_only=True)
class Batch:
    """Tensors of B rows, padded on the right."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    positions_N3: Tensor
    """Row, t of the hidden state that predicts each target token, and its column in (B, R)."""
    targets_N: Tensor
    last_B: Tensor
    """Index of the last real token of each row."""
    mask_BR: Tensor
    """True at the target tokens of each row, left-aligned."""
    model_inputs: dict[str, Tensor]
    """`pixel_values` and whatever else the processor made of the images, by the model's own
    names."""
    tokens: dict[str, Tensor]
    """Row.tokens, padded to (B, R) with zeros."""
    scalars: dict[str, Tensor]
    """Row.scalars, shape (B,)."""
    ids: tuple[str, ...] = ()
    """Of the rows, for messages."""
    token_inputs: dict[str, Tensor] = field(default_factory=dict)
    """What some families are given per token beside the ids, (B, T), by the model's own names."""
    shared: SharedImages | None = None
    """Set where rows share images; else every row's are among `model_inputs`."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""

        def move(value: Any) -> Any:
            if value is None or isinstance(value, tuple):
                return value
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, SharedImages):
                return value.to(device)
            return {key: move(item) for key, item in value.items()}

        return Batch(**{name: move(getattr(self, name)) for name in self.__slots__})

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of the batch."""
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, dict):
                yield from value.values()
            elif isinstance(value, SharedImages):
                yield from value.tensors()

    @property
    def num_rows(self) -> int:
        """B."""
        return self.input_ids_BT.shape[0]


def encode_row(row: Row, processing: Processing) -> Encoded:
    """The row's tokens, target mask and image inputs; errors as `Processing.encode`."""
    return processing.encode(
        row.id,
        row.prompt,
        row.images,
        response_ids=row.response_ids,
        turns=row.turns,
        noise=row.noise,
    )


def collate(
    rows: Sequence[Row],
    encoded: Sequence[Encoded],
    processing: Processing,
    *,
    share_images: bool = False,
) -> Batch:
    """Pad `rows` to one batch; with `share_images` the images of several rows are in it once.

    Raises:
        ValueError: a row's signals and its target tokens differ in number, or its image placeholder
            tokens would be targets; names the row.
    """
    input_ids = [torch.from_numpy(item.input_ids) for item in encoded]
    input_ids_BT = pad_sequence(input_ids, batch_first=True, padding_value=processing.pad_id)
    target_mask_BT = pad_sequence(
        [torch.from_numpy(item.target_mask) for item in encoded], batch_first=True
    )
    lengths_B = torch.tensor([len(item) for item in input_ids])
    attention_mask_BT = (torch.arange(input_ids_BT.shape[1])[None] < lengths_B[:, None]).long()
    positions_N3, targets_N = shift_targets(input_ids_BT, target_mask_BT)
    num_targets_B = target_mask_BT.sum(1)
    width = int(num_targets_B.max())
    targets_N = _override_targets(targets_N, rows, num_targets_B.tolist())
    mask_BR = torch.arange(width)[None] < num_targets_B[:, None]

    tokens: dict[str, Tensor] = {}
    for name in sorted({name for row in rows for name in row.tokens}):
        padded = torch.zeros(len(rows), width)
        for index, row in enumerate(rows):
            values = row.tokens[name]
            if len(values) != int(num_targets_B[index]):
                raise ValueError(
                    f"row {row.id}: {len(values)} values of {name} for "
                    f"{int(num_targets_B[index])} target tokens"
                )
            padded[index, : len(values)] = torch.from_numpy(np.array(values, dtype=np.float32))
        tokens[name] = padded
    names = sorted({name for row in rows for name in row.scalars})
    images, shared = [item.model_inputs for item in encoded], None
    if share_images:
        images, shared = distinct_images(rows, encoded, processing.image_token_id)
    return Batch(
        input_ids_BT=input_ids_BT,
        attention_mask_BT=attention_mask_BT,
        positions_N3=positions_N3,
        targets_N=targets_N,
        last_B=lengths_B - 1,
        mask_BR=mask_BR,
        model_inputs=processing.merge(images),
        token_inputs=processing.token_inputs(input_ids_BT),
        shared=shared,
        tokens=tokens,
        scalars={name: torch.tensor([row.scalars[name] for row in rows]) for name in names},
        ids=tuple(row.id for row in rows),
    )


def _override_targets(
    targets_N: Tensor, rows: Sequence[Row], num_targets_B: Sequence[int]
) -> Tensor:
    """`targets_N` with the rows' own `target_ids`, which must be as many as their targets."""
    parts = []
    own = torch.split(targets_N, list(num_targets_B))
    for row, part in zip(rows, own, strict=True):
        if row.target_ids is None:
            parts.append(part)
            continue
        if len(row.target_ids) != len(part):
            raise ValueError(
                f"row {row.id}: {len(row.target_ids)} target ids for {len(part)} target tokens"
            )
        parts.append(torch.from_numpy(np.asarray(row.target_ids, dtype=np.int64)))
    return torch.cat(parts)


def unpad(values_BR: Tensor, mask_BR: Tensor) -> list[np.ndarray]:
    """One float32 array per row, its target tokens only."""
    values, mask = values_BR.detach().float().cpu().numpy(), mask_BR.cpu().numpy()
    return [row[keep] for row, keep in zip(values, mask, strict=True)]
