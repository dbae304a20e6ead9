"""Roles and copies: the one declaration that placement, ledger, report and tests read.

A *copy* is one resident set of model weights. A method lists the copies that its training step
needs; what generating and judging cost is declared too, as *shared* copies, so that they are never
hidden and never counted as the method's (except that under PPO the reward model is its own).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["policy", "critic", "reference", "reward"]
SharedRole = Literal["rollout_engine", "judge", "writer"]
ReferenceMode = Literal["own_copy", "on_host", "adapter_off", "cached"]
"""How the reference's log-probabilities are had: from a copy that stays on the device, from one
that waits in host memory, from the policy without its adapters, or before training only, so that no
copy stays."""
CriticMode = Literal["own_copy", "shared_base"]
"""Whether the critic is a model of its own, or adapters and a head on the policy's frozen base."""
ReferenceSource = Literal["resident_copy", "passing_copy", "policy", "policy_without_adapters"]
"""Who computes them; a passing copy is loaded for it and freed again."""


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


def copies_in_loop(
    copies: tuple[Copy, ...], *, judged: bool = True, written: bool = False
) -> tuple[str, ...]:
    """Names of all copies resident in the online loop.

    Adds the rollout engine, and the judge unless the reward model is one of the method's copies or
    nothing is `judged`, because pairs are made and not found; and the text model, if texts are
    `written` by one.
    """
    own = copies_in_training(copies)
    judge = () if "reward" in own or not judged else ("judge",)
    return (*own, "rollout_engine", *judge, *(("writer",) if written else ()))


def reference_source(refreshed: tuple[Role, ...], mode: ReferenceMode) -> ReferenceSource:
    """Who computes the reference's log-probabilities for a method with these `refreshed` roles.

    A reference that takes the policy's weights after every round is the policy itself until the
    round's first step, so that, when asked before training, it needs no second copy.
    """
    if mode in ("own_copy", "on_host"):
        return "resident_copy"
    if mode == "adapter_off":
        return "policy_without_adapters"
    return "policy" if "reference" in refreshed else "passing_copy"


def resident_in_training(copies: tuple[Copy, ...], mode: ReferenceMode) -> tuple[Role, ...]:
    """Roles of the declared copies that hold weights of their own while training.

    What a method declares stays 4, 2 or 1; of PPO's 4 there are 3 in memory when the reference is
    the policy without adapters, or has given its values before.
    """
    stays = mode in ("own_copy", "on_host")
    return tuple(copy.role for copy in copies if copy.role != "reference" or stays)


def resident_in_scoring(
    copies: tuple[Copy, ...], refreshed: tuple[Role, ...], mode: ReferenceMode
) -> tuple[Role, ...]:
    """Roles of the declared copies that hold weights of their own while the round's rows get their
    signals (the phase `logprobs`): those of the training step, and a passing reference.
    """
    passing = reference_source(refreshed, mode) == "passing_copy"
    staying = resident_in_training(copies, mode)
    return tuple(
        copy.role
        for copy in copies
        if copy.role in staying or (copy.role == "reference" and passing)
    )
