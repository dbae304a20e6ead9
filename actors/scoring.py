"""Per-token values of rows under a module: log-probabilities, or a critic's values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from actors.forward import FeatureMismatchError
from actors.micro_batches import Forwards, in_order, pack
from actors.progress import note
from trainers.batch import Batch, Row, collate, encode_row, unpad
from trainers.data.processing import Processing


def score_rows(
    module: Any,
    processing: Processing,
    rows: Sequence[Row],
    forwards: Forwards,
    device: torch.device,
    track: Callable[[Batch], AbstractContextManager[Any]],
    most_of_ranks: Callable[[int], int] = int,
) -> list[np.ndarray]:
    """Forward `rows` in batches of similar length; float32 arrays in the order given.

    Args:
        most_of_ranks: from this rank's number of forwards to the largest of any rank's: all run as
            many. One rank alone has the largest itself.
    """
    note(f"score_rows: received {len(rows)} rows")
    encoded = {id(row): encode_row(row, processing) for row in rows}
    lengths = {key: len(item.input_ids) for key, item in encoded.items()}
    # The longest first: a batch that does not fit is the first, and only the first is tracked.
    order = in_order(
        [(row,) for row in rows], lengths, by_length=True, share_images=forwards.share_images
    )
    results: dict[int, np.ndarray] = {}
    scored = 0

    def batch_of(chosen: Sequence[Row]) -> Batch:
        items = [encoded[id(row)] for row in chosen]
        return collate(chosen, items, processing, share_images=forwards.share_images).to(device)

    packed = pack(order, lengths, forwards)
    for chosen in packed:
        batch = batch_of(chosen)
        with track(batch):
            try:
                outputs = module(batch)
            except FeatureMismatchError:
                for row in chosen:  # one of them alone, to name it
                    module(batch_of([row]))
                raise
        found = (outputs.logprobs_BR, outputs.values_BR, outputs.tokens_BR)
        values_BR = next(values for values in found if values is not None)
        for row, array in zip(chosen, unpad(values_BR, batch.mask_BR), strict=True):
            results[id(row)] = array
        scored += len(chosen)
        note(f"score_rows: scored {scored} of {len(rows)} rows")
    for _ in range(most_of_ranks(len(packed)) - len(packed)):
        module(batch_of(order[-1]))
    return [results[id(row)] for row in rows]
