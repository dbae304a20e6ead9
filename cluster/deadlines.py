"""How long a call to a process may take."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainers.config import Settings

Limit = Literal["load", "generate", "judge", "logprobs", "train", "sync", "save", "answer"]
"""A key of `deadlines`."""


class DeadlinesConfig(Settings):
    """Seconds that one call to the processes of a role may take; 0: no limit.

    Past it the run stops, and the stacks of all processes that were waited for are in its folder.
    """

    load: float = Field(default=1800, ge=0)
    """Starting an engine, building a copy, moving it on or off the device."""
    generate: float = Field(default=3600, ge=0)
    """A round's answers, or those of an evaluation."""
    judge: float = Field(default=3600, ge=0)
    """A round's judgements."""
    logprobs: float = Field(default=3600, ge=0)
    """Log-probabilities or values of a round's rows."""
    train: float = Field(default=3600, ge=0)
    """A round's optimiser steps."""
    sync: float = Field(default=900, ge=0)
    """Weights from the policy into an engine, or into the reference."""
    save: float = Field(default=900, ge=0)
    """Writing a model folder."""
    answer: float = Field(default=300, ge=0)
    """A small question: a name, bytes held."""
    restarts: int = Field(default=3, ge=0)
    """How often one call is done again, on a new process, because the rollout, judge, reference or
    writer process died; after that the run stops."""

    def seconds(self, limit: Limit) -> float | None:
        """The limit; None where there is none."""
        return float(getattr(self, limit)) or None
