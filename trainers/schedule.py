"""Learning-rate schedules as factors of the peak."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, *, warmup_steps: int, total_steps: int | None) -> float:
    """Factor of the peak learning rate at optimiser step `step` (0 is the first).

    Linear warm-up: step 0 of w warm-up steps gets 1 / (w + 1), step w gets 1. Then constant, or,
    with `total_steps`, a half cosine down to 0 after the last step.

    Limiting case: no warm-up and no total is 1 everywhere.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if total_steps is None:
        return 1.0
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
