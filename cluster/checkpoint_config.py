"""Settings of checkpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainers.config import Settings


class CheckpointConfig(Settings):
    """When the state of a run is saved, and what stays of it (docs/resume.md)."""

    every: int = Field(default=1, ge=0)
    """Rounds between checkpoints, and after the last round; 0: none, and no resuming."""
    keep: int = Field(default=2, ge=1)
    """The latest so many stay."""
    keep_best: Literal["chair_i", "chair_s", "recall", "score"] | None = None
    """Keep the checkpoint that is best by this metric, too; `score` is the judge's mean."""
