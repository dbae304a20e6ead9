"""What a method is: the copies it declares, the rows it selects, and its losses.

A method has no Ray, no engine and no optimiser. The shared loop (`cluster.driver`) does, for every
method alike:

    groups  = method.select(scored, samples, rng)     # which rows to train on
    signals = method.signals                          # per-token values asked of the copies
    method.prepare(groups)                            # from signals to targets (PPO: advantages)
    loss    = method.loss(role, outputs, batch, totals)   # called by each trained copy's engine
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from trainers.batch import Batch, Group
from trainers.config import OptimisationConfig
from trainers.data.records import Correction, Sample, ScoredRollout
from trainers.losses import Metrics
from trainers.pairs import most_pairs
from trainers.roles import Copy, Role, trained_roles

TextModel = Callable[[Sequence[str]], list[str | None]]
"""From requests to replies; None for a request that does not fit."""


class Outputs(NamedTuple):
    """What a copy's forward returns; a module fills in what it computes.

    Axes as in `Batch`: B rows, R target tokens. A tuple, since only in tuples do ZeRO-3's hooks
    find the tensors: without them the backward meets weights that are not gathered.
    """

    logprobs_BR: Tensor | None = None
    values_BR: Tensor | None = None
    entropy_BR: Tensor | None = None
    scores_B: Tensor | None = None
    tokens_BR: Tensor | None = None
    """Token ids, where they were asked for."""


@dataclass(frozen=True, slots=True)
class Signal:
    """Per-token values that `role` computes for the selected rows before training."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """How a trained copy is optimised in one round."""

    learning_rate: float
    epochs: int
    minibatch_size: int
    """Groups per optimiser step."""
    warmup_steps: int = 0
    """Steps of linear warm-up, once, at the start of the run."""
    total_steps: int | None = None
    """With a total, the learning rate falls to 0 along a half cosine; else it stays."""

    @classmethod
    def of(cls, config: OptimisationConfig) -> Optimisation:
        """What the settings say, for methods that train one copy in one way."""
        return cls(
            learning_rate=config.learning_rate,
            epochs=config.epochs,
            minibatch_size=config.minibatch_size,
            warmup_steps=config.warmup_steps,
        )


@dataclass(slots=True)
class Selection:
    """Rows to train on this round, and what was left out."""

    groups: list[Group]
    stats: dict[str, float] = field(default_factory=dict)
    why_empty: str = "the method selected no rows"
    """What the user is told if there are no groups."""
    corrections: list[Correction] = field(default_factory=list)
    """Turns that were written for the rows, to be kept with the round's records."""


class Method(ABC):
    """Base of all methods."""

    name: ClassVar[str]
    copies: ClassVar[tuple[Copy, ...]]
    signals: ClassVar[tuple[Signal, ...]] = ()
    refreshed: ClassVar[tuple[Role, ...]] = ()
    """Frozen copies that take the policy's weights after each round."""
    refresh_rate: float = 1.0
    """How much of them: frozen := (1 - rate) * frozen + rate * policy. Below 1 they are a moving
    average, which nothing else can stand for."""
    config: Any = None
    """The method's own settings."""
    rows_per_group: int = 1
    """Rows that are never split, at most."""
    asks_alike: ClassVar[bool] = True
    """Whether `ask` gives the same in every round; False where it depends on earlier rounds."""
    text_model: TextModel | None = None
    """Set where a run has one: writes text that the rows need."""
    driver_only: ClassVar[tuple[str, ...]] = ("text_model",)
    """Attributes that stay in the driver's process: training copies need a method's losses only."""

    @abstractmethod
    def select(
        self, scored: Sequence[ScoredRollout], samples: Mapping[str, Sample], rng: random.Random
    ) -> Selection:
        """Choose this round's rows; failures (`score is None`) are never among them."""

    def ask(self, sample: Sample) -> Sample:
        """The sample as the policy is asked it, in rollouts and in the evaluation; what is judged,
        recorded and selected from is the sample itself.
        """
        return sample

    def most_groups(self, num_prompts: int, num_answers: int) -> int:
        """Groups that a round can have at most, with `num_answers` to each prompt: the pairs that
        may be mined of them, or every answer by itself.
        """
        pairs = getattr(self.config, "pairs", None)
        if pairs is None:
            return num_prompts * num_answers
        return num_prompts * most_pairs(num_answers, pairs.strategy, pairs.max_pairs_per_prompt)

    def prepare(self, groups: Sequence[Group]) -> dict[str, float]:
        """Turn signals into targets, over the whole round's rows. Returns metrics."""
        return {}

    @abstractmethod
    def optimisation(self, role: Role) -> Optimisation:
        """How `role` is optimised in this round."""

    def totals(self, batch: Batch) -> dict[str, float]:
        """Counts that the loss divides by; summed over the micro-batches and ranks of a step."""
        return {"tokens": float(batch.mask_BR.sum()), "rows": float(batch.num_rows)}

    @abstractmethod
    def loss(
        self, role: Role, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Scalar loss of one micro-batch, already divided by the optimiser step's `totals`."""

    def state(self) -> dict[str, Any]:
        """What the method keeps from round to round, as JSON values: its part of a checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`.

        Raises:
            KeyError: it lacks something; names it.
        """
        assert not state, f"{self.name} keeps nothing, yet there is {sorted(state)}"

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in self.driver_only}

    @property
    def trained(self) -> tuple[Role, ...]:
        """Roles of the trained copies."""
        return trained_roles(self.copies)
