"""Per-token values of rows under a module: log-probabilities, or a critic's values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from actors.modules import FeatureMismatchError
from actors.progress import note
from trainers.batch import Batch, Row, collate, encode_row, unpad
from trainers.data.processing import Encoded, Processing


def score_rows(
    module: Any,
    processing: Processing,
    rows: Sequence[Row],
    batch_size: int,
    device: torch.device,
    track: Callable[[Batch], AbstractContextManager[Any]],
) -> list[np.ndarray]:
    """Forward `rows` in batches of similar length; float32 arrays in the order given."""
    note(f"score_rows: received {len(rows)} rows")
    encoded = [encode_row(row, processing) for row in rows]
    # The longest first: a batch that does not fit is the first, and only the first is tracked.
    order = sorted(range(len(rows)), key=lambda index: -len(encoded[index].input_ids))
    results: list[np.ndarray | None] = [None] * len(rows)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([rows[i] for i in chosen], [encoded[i] for i in chosen], processing)
        batch = batch.to(device)
        with track(batch):
            try:
                outputs = module(batch)
            except FeatureMismatchError:
                for index in chosen:  # one of them alone, to name it
                    module(_alone(rows[index], encoded[index], processing).to(device))
                raise
        found = (outputs.logprobs_BR, outputs.values_BR, outputs.tokens_BR)
        values_BR = next(values for values in found if values is not None)
        for index, array in zip(chosen, unpad(values_BR, batch.mask_BR), strict=True):
            results[index] = array
        note(f"score_rows: scored {min(start + batch_size, len(rows))} of {len(rows)} rows")
    return [array for array in results if array is not None]


def _alone(row: Row, encoded: Encoded, processing: Processing) -> Batch:
    return collate([row], [encoded], processing)
