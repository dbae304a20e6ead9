"""The judge's scores in a unit of their own: standard deviations of the first round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class ScoreScale:
    """Standardises scores by mean and spread of the first round that has at least two.

        z = clip((score - mean) / std, -limit, limit)

    The judge's scale is arbitrary; it is taken once and kept, since a running mean would move the
    target. Before there is a scale, scores are only clipped. Source: the standardisation of
    InstructGPT-style PPO ("N implementation details"), here fixed after the first round.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self.mean: float | None = None
        self.std = 1.0

    def state(self) -> dict[str, float | None]:
        """The scale, for a checkpoint."""
        return {"mean": self.mean, "std": self.std}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the scale of `state()`."""
        self.mean, self.std = state["mean"], state["std"]

    def fit(self, scores: Sequence[float]) -> None:
        """Take mean and spread of a round's scores, unless they are known already."""
        if self.mean is None and len(scores) > 1:
            raw = np.array(scores, dtype=np.float64)
            self.mean, self.std = float(raw.mean()), float(raw.std() + 1e-6)

    def standardise(self, scores: Sequence[float]) -> list[float]:
        """Scores in standard deviations, clipped; the first call's fit the scale."""
        self.fit(scores)
        raw = np.array(scores, dtype=np.float64)
        scaled = (raw - (self.mean or 0.0)) / self.std
        return [float(value) for value in scaled.clip(-self.limit, self.limit)]
