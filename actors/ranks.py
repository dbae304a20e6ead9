"""What ranks tell each other beside gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trainers.batch import Batch
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


def not_finite(loss: Tensor, world_size: int) -> str | None:
    """What is wrong with a loss that is not finite on some rank; the same answer on all of them,
    which must all call: one that stopped alone would leave the others waiting in their next
    collective.
    """
    finite = torch.isfinite(loss).float()
    if world_size > 1:
        torch.distributed.all_reduce(finite, op=torch.distributed.ReduceOp.MIN)
    if finite:
        return None
    own = loss.item()
    return "not finite on another rank" if math.isfinite(own) else str(own)


def most_of_ranks(number: int, device: torch.device, world_size: int) -> int:
    """The largest of the ranks' numbers, on all of them, which must all call."""
    if world_size == 1:
        return number
    tensor = torch.tensor(number, device=device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return int(tensor)


def step_totals(
    batches: Sequence[tuple[Batch, float]],
    count: Callable[[Batch], dict[str, float]],
    device: torch.device,
    world_size: int,
) -> dict[str, float]:
    """Weighted counts of an optimiser step's micro-batches, those of all ranks together."""
    sums: dict[str, float] = {}
    for batch, weight in batches:
        for name, value in count(batch).items():
            sums[name] = sums.get(name, 0.0) + weight * value
    if world_size == 1:
        return sums
    names = sorted(sums)
    tensor = torch.tensor([sums[name] for name in names], device=device)
    torch.distributed.all_reduce(tensor)
    return dict(zip(names, tensor.tolist(), strict=True))


def _plain(step: Metrics) -> Metrics:
    """Numbers, which another process can read whatever its device is."""
    return {name: (float(value), float(count)) for name, (value, count) in step.items()}
