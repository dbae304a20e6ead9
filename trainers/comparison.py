"""`compare.json`: what a run measured, as one validated object, and what follows from it.

`docs/compare_json.md` documents every key. Numbers that could not be measured are null, never 0
and never NaN. Rates are fractions in 0..1, bytes are bytes, times are seconds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from trainers.conditions import Conditions, Difference, differences
from trainers.json_files import load_as

SCHEMA_VERSION = 1


def _nan_to_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_nan_to_none)]
"""A measured number; None (null) where it could not be measured."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Evaluated(_Model):
    """A model that was only evaluated: the base, or the honest ceiling."""

    metrics: dict[str, Number] = Field(default_factory=dict)
    """Held-out metrics; the keys of `trainers.evaluation`."""


class CurvePoint(_Model):
    """One round of a method; round 0 is the base before training."""

    round: int
    score: Number = None
    """Mean judge score of the round's rollouts."""
    score_std: Number = None
    kl: Number = None
    """Mean KL of the policy from the base, nats per response."""
    chair_i: Number = None
    chair_s: Number = None
    recall: Number = None
    response_length: Number = None
    pope_accuracy: Number = None
    pope_yes_ratio: Number = None
    loss: Number = None
    entropy: Number = None
    clip_fraction: Number = None
    explained_variance: Number = None
    """Of the critic: 1 - Var(return - value) / Var(return); methods without a critic leave null."""
    pairs: int | None = None
    rollouts: int | None = None
    judge_calls: int | None = None
    parity: Number = None
    """Mean absolute difference of rollout and trainer logprobs after the weight sync."""
    seconds: Number = None
    extra: dict[str, Number] = Field(default_factory=dict)
    """Anything else that a method reports; kept, not drawn."""


class PhaseSpan(_Model):
    """One phase on the clock, in seconds since the arm's start."""

    phase: str
    start: float
    end: float


class Memory(_Model):
    """What the memory ledger says of one arm; `memory/ledger.jsonl` has every row."""

    binding_phase: str | None = None
    """The phase in which the device held most."""
    device_bytes_by_phase: dict[str, int] = Field(default_factory=dict)
    """Phase -> bytes of all processes, peaks included, in the round where they were most."""
    host_bytes_by_phase: dict[str, int] = Field(default_factory=dict)
    """As above: parked copies, and what processes hold beyond tensors."""
    object_store_bytes: int = 0
    by_phase: dict[str, dict[str, dict[str, int]]] = Field(default_factory=dict)
    """Phase -> copy -> kind -> device bytes."""
    moved_bytes: int = 0
    """Between device and host because copies took turns or engines slept; 0 otherwise."""
    moving_seconds: float = 0.0
    """What that took; part of the phases' seconds."""


class RolloutAccount(_Model):
    """Rollouts that an arm asked its engine for, and what became of them."""

    asked: int = 0
    judged: int = 0
    """With a score."""
    dropped: int = 0
    """Without one: the prompt did not fit, the judge failed."""
    lost: int = 0
    """asked - judged - dropped; 0, or the arm stopped."""
    doubled: int = 0
    """Ids that came more than once; 0, or the arm stopped."""


class MethodResult(_Model):
    """What one arm cost and what it bought."""

    method: str = ""
    """Name of the method that the arm runs; several arms may run one."""
    judge: str = ""
    """Name of the judge, as in the records."""
    conditions: Conditions | None = None
    """What it ran under; null for an arm that stopped before it was measured."""
    copies_train: list[str] = Field(default_factory=list)
    """Model copies that the training step needs, as the method declares them: 4, 2 or 1."""
    copies_trained: list[str] = Field(default_factory=list)
    """Those of them that have gradients and optimiser states; the others are frozen."""
    copies_loop: list[str] = Field(default_factory=list)
    """Everything resident over a round: the copies above, the rollout engine, the judge."""
    bytes_by_copy: dict[str, dict[str, int]] = Field(default_factory=dict)
    """copy -> kind (`weights`, `gradients`, `optimizer`) -> bytes, from the tensors themselves."""
    memory: Memory = Field(default_factory=Memory)
    seconds_by_phase: dict[str, float] = Field(default_factory=dict)
    core_seconds: dict[str, float] = Field(default_factory=dict)
    """Process (role/rank, `driver`) -> CPU time of its threads over the rounds, as the operating
    system counts it: hardly touched by what else the machine does."""
    rollouts: int = 0
    judge_calls: int = 0
    account: RolloutAccount = Field(default_factory=RolloutAccount)
    dropped: dict[str, int] = Field(default_factory=dict)
    """Reason -> samples that were dropped and not trained on."""
    metrics: dict[str, Number] = Field(default_factory=dict)
    curve: list[CurvePoint] = Field(default_factory=list)
    timeline: list[PhaseSpan] = Field(default_factory=list)
    best_round: int | None = None
    """The round whose model was kept and evaluated (`eval.keep_best`); null: the last one."""
    failure: str | None = None
    """Why the arm stopped early; null for an arm that finished."""

    def training_bytes(self) -> int:
        """Bytes of the copies that the training step needs, between its steps."""
        return sum(sum(self.bytes_by_copy.get(copy, {}).values()) for copy in self.copies_train)


class Comparison(_Model):
    """The whole of `compare.json`."""

    schema_version: int = SCHEMA_VERSION
    created: str = ""
    """ISO 8601 time of writing."""
    seed: int = 0
    quick: bool = False
    config: dict[str, Any] = Field(default_factory=dict)
    """The resolved configuration."""
    environment: dict[str, Any] = Field(default_factory=dict)
    """Versions, device, cores, memory."""
    base: Evaluated = Field(default_factory=Evaluated)
    honest: Evaluated | None = None
    """The ceiling: the model before the bias was planted."""
    methods: dict[str, MethodResult] = Field(default_factory=dict)
    judge: dict[str, Number] = Field(default_factory=dict)
    """`pair_accuracy_generated`, `_no_critique`, `_ground_truth_critique`, and extras."""
    seconds_total: Number = None
    """Wall-clock time of the whole run."""
    warnings: list[str] = Field(default_factory=list)
    """Shown in red wherever the comparison is shown."""
    unfair: list[Difference] = Field(default_factory=list)
    """Every two finished arms whose conditions differ; shown in red, too."""

    def arms(self) -> Iterator[tuple[str, MethodResult]]:
        """The arms in the order in which they were run."""
        yield from self.methods.items()

    def unequal_conditions(self) -> list[Difference]:
        """What `unfair` is made of: the conditions of the arms that finished, by pairs."""
        return differences(
            {
                name: arm.conditions
                for name, arm in self.arms()
                if arm.failure is None and arm.conditions is not None
            }
        )


def save(comparison: BaseModel, path: Path) -> None:
    """Write a `Comparison`, or a `Gallery`, atomically."""
    write_atomic(path, comparison.model_dump_json(indent=2) + "\n")


def write_atomic(path: Path, text: str) -> None:
    """Write `path` so that a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> Comparison:
    """Read `compare.json`; `UserError` names the file and the first wrong key."""
    return load_as(Comparison, path)
