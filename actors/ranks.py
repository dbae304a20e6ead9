"""What ranks tell each other beside gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trainers.losses import Metrics, add_metrics


def over_ranks(steps: Sequence[Metrics], world_size: int) -> list[Metrics]:
    """Metrics of the whole of each optimiser step, from every rank's share of it; the same on all
    ranks, which must all call.

    A rank's loss is its share of the step's, so that losses add up and are of one step; all other
    metrics are sums with their counts. Limiting case: one rank has the whole already.
    """
    if world_size == 1:
        return list(steps)
    everyone: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(everyone, [_plain(step) for step in steps])
    whole = []
    for shares in zip(*everyone, strict=True):
        summed = add_metrics(shares)
        if "loss" in summed:
            summed["loss"] = (summed["loss"][0], 1.0)
        whole.append(summed)
    return whole


def _plain(step: Metrics) -> Metrics:
    """Numbers, which another process can read whatever its device is."""
    return {name: (float(value), float(count)) for name, (value, count) in step.items()}
