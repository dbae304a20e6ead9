"""From prompts to optimiser steps: how the batch sizes of a run follow from each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.config import RunConfig
from trainers.method import Method
from trainers.roles import Role

if TYPE_CHECKING:
    from cluster.arm import Arm
    from cluster.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """A round of one trained copy. Numbers are those of a full minibatch, the largest."""

    role: Role
    epochs: int
    minibatch: int
    """Groups in an optimiser step, all ranks together."""
    ranks: int
    groups_per_rank: int
    micro_batch: int
    """Rows of a rank's forward; groups are never split, so it may be less than the setting, and a
    group that is larger goes alone. With a budget of tokens 0: lengths decide."""
    forwards: int
    """Of a rank, for an optimiser step; with a budget of tokens at most."""
    tokens: int
    """In a forward, at most: every row as long as the engine's longest, or the budget."""
    steps: int
    """Optimiser steps of the round, all epochs."""

    def line(self, exact: str) -> str:
        """In words; `exact` is put before what is a bound."""
        idle = ""
        if self.minibatch < self.ranks:
            idle = (
                f"; {self.ranks - self.minibatch} rank(s) have nothing to do: raise minibatch_size"
            )
        forwards = f"{self.forwards} forward(s) of {self.micro_batch} rows, at most"
        if not self.micro_batch:
            forwards = f"at most {self.forwards} forward(s) of at most"
        return (
            f"{self.role}: minibatch {self.minibatch} -> {self.groups_per_rank} on each of "
            f"{self.ranks} rank(s) -> {forwards} {self.tokens:,} tokens; {exact}{self.steps} "
            f"optimiser steps a round in {self.epochs} epoch(s)" + idle
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """A round from prompts to optimiser steps; upper bounds where scores decide."""

    prompts: int
    answers_per_prompt: int
    groups: int
    """Rows, pairs or sets that are trained on, at most."""
    rows_per_group: int
    copies: tuple[Steps, ...]

    def lines(self) -> list[str]:
        """The derivation in words, one line for the round and one for each trained copy."""
        answers = self.prompts * self.answers_per_prompt
        exact = "" if self.groups == answers and self.rows_per_group == 1 else "at most "
        group = (
            f"groups of {self.rows_per_group} rows" if self.rows_per_group > 1 else "single rows"
        )
        start = (
            f"batches: {self.prompts} prompts x {self.answers_per_prompt} rollouts = {answers} "
            f"answers a round -> {exact}{self.groups} {group}"
        )
        return [start, *(f"batches: {copy.line(exact)}" for copy in self.copies)]


def derive(config: RunConfig, method: Method, ranks: Mapping[Role, int]) -> Batches:
    """The derivation for a run; `ranks` are each trained role's processes.

    Limiting case: one prompt, one answer, one rank and a minibatch of one is a step a round and
    epoch.
    """
    rollout = config.rollout
    answers = rollout.num_rollouts_per_prompt
    groups = method.most_groups(rollout.num_prompts, _candidates(config))
    copies = []
    for role in method.trained:
        optimisation = method.optimisation(role)
        minibatch = min(optimisation.minibatch_size, groups)
        per_rank = math.ceil(minibatch / ranks[role])
        rows, forwards, tokens = _forwards(config, method.rows_per_group, per_rank)
        copies.append(
            Steps(
                role=role,
                epochs=optimisation.epochs,
                minibatch=minibatch,
                ranks=ranks[role],
                groups_per_rank=per_rank,
                micro_batch=rows,
                forwards=forwards,
                tokens=tokens,
                steps=optimisation.epochs * math.ceil(groups / optimisation.minibatch_size),
            )
        )
    return Batches(
        prompts=rollout.num_prompts,
        answers_per_prompt=answers,
        groups=groups,
        rows_per_group=method.rows_per_group,
        copies=tuple(copies),
    )


def _forwards(config: RunConfig, rows_per_group: int, groups: int) -> tuple[int, int, int]:
    """Rows of a forward (0 where lengths decide), number of forwards and tokens of one: bounds, as
    rows may be shorter than the engine's longest.
    """
    longest, budget = config.rollout.max_model_len, config.train.max_tokens_per_micro_batch
    group_tokens = rows_per_group * longest
    if budget:
        packed = max(1, budget // group_tokens)
        return 0, math.ceil(groups / packed), min(max(budget, group_tokens), groups * group_tokens)
    packed = max(1, config.train.micro_batch_size // rows_per_group)
    rows = min(packed, groups) * rows_per_group
    return rows, math.ceil(groups / packed), rows * longest


def describe_batches(session: Session, arm: Arm) -> None:
    """Print the derivation, so that nobody has to guess what a step is."""
    ranks = {role: session.plan.num_ranks(role) for role in arm.method.trained}
    for line in derive(arm.config, arm.method, ranks).lines():
        session.console.line(line)


def _candidates(config: RunConfig) -> int:
    """Answers to a prompt that pairs can be mined from; made ones have two sides."""
    answers, made = config.rollout.num_rollouts_per_prompt, config.negatives
    if not made.rejected:
        return answers
    chosen = 1 if made.chosen == "data" else answers
    rejected = {"noisy": answers * len(made.noise_steps), "data": 1, "injected": 1}
    return chosen + sum(rejected.get(source, answers) for source in made.rejected)
