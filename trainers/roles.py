"""Roles and copies: the one declaration that placement, ledger, report and tests read.

A *copy* is one resident set of model weights. A method lists the copies that its training step
needs; what generating and judging cost is declared too, as *shared* copies, so that they are never
hidden and never counted as the method's (except that under PPO the reward model is its own).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["policy", "critic", "reference", "reward"]
SharedRole = Literal["rollout_engine", "judge"]


@dataclass(frozen=True, slots=True)
class Copy:
    """One resident set of weights that a method's training step needs."""

    role: Role
    trained: bool


def trained_roles(copies: tuple[Copy, ...]) -> tuple[Role, ...]:
    """Roles of the copies that are trained."""
    return tuple(copy.role for copy in copies if copy.trained)


def copies_in_training(copies: tuple[Copy, ...]) -> tuple[str, ...]:
    """Names of the copies of the training step: 4 for PPO, 2 for DPO, 1 for nSFT."""
    return tuple(copy.role for copy in copies)


def copies_in_loop(copies: tuple[Copy, ...]) -> tuple[str, ...]:
    """Names of all copies resident in the online loop.

    Adds the rollout engine, and the judge unless the reward model is one of the method's copies.
    """
    own = copies_in_training(copies)
    judge = () if "reward" in own else ("judge",)
    return (*own, "rollout_engine", *judge)
