"""What an arm ran under, and where two arms' conditions differ so that they do not compare.

Bytes and seconds of two methods say something about the methods only if all else was equal. What
has to be equal:

* precision: bytes of weights, masters and optimiser states are proportional to it;
* micro-batch tokens, rows times padded length (images expanded) of the largest forward that the
  policy was trained on: activations and logits are proportional to them. Not rows a step, which
  only decide how many micro-batches there are, and not `micro_batch_size`, the ceiling of rows that
  an arm with smaller steps never comes near;
* shards: ranks and ZeRO stage decide which part of a copy a process holds;
* the path of the log-probabilities: how many target tokens have logits at once, whether
  activations are kept or computed again, who stands for the reference;
* the rollout copy: the engine that every arm pays for;
* overlap: seconds of phases that run side by side are no sum, and a round early trains on answers
  of older weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Literal

from pydantic import BaseModel, ConfigDict

TOLERANCE = 0.1
"""Sizes that follow from the answers, or from the memory that was free, may differ by this share of
the larger one: padded lengths do with every sample of rollouts."""

Condition = Literal["precision", "micro_batch", "shards", "logprob_path", "rollout_copy", "overlap"]
Value = bool | int | float | str
LABELS: dict[Condition, str] = {
    "precision": "precision",
    "micro_batch": "micro-batch tokens",
    "shards": "shards",
    "logprob_path": "logprob path",
    "rollout_copy": "rollout copy",
    "overlap": "overlap",
}


class _Part(BaseModel):
    """A group of values that are compared one by one; null is not known, and equals everything."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Precision(_Part):
    """Dtypes of the trained policy's tensors."""

    weights: str
    masters: str
    """What the optimiser steps on: float32 masters, or the weights themselves."""
    optimizer: str | None = None
    """Of the moments; null before the first step."""


class MicroBatch(_Part):
    """The largest forward that the policy was trained on, of one rank."""

    tokens: int
    """Rows times length."""
    rows: int
    """A pair counts two."""
    length: int
    """Prompt, images expanded, and response of the longest row."""
    most_rows: int
    """`train.micro_batch_size`."""


class Shards(_Part):
    """How a trained copy is split over processes."""

    ranks: int
    zero_stage: int


class LogprobPath(_Part):
    """How log-probabilities are computed."""

    chunk: int
    """Target tokens whose logits exist at once."""
    gradient_checkpointing: bool
    reference: str | None = None
    """`train.reference`; null for a method without one."""


class RolloutCopy(_Part):
    """The rollout engine, as vLLM resolved its settings."""

    dtype: str
    max_num_seqs: int
    max_model_len: int
    kv_cache_tokens: int
    """What the KV cache has room for."""
    sleeps: bool = False
    """Whether the engine leaves the device while it does not work."""
    transport: str = "object_store"
    """How new weights come to it."""


class Overlap(_Part):
    """What a round did at the same time."""

    judge_slices: int
    off_policy_steps: int
    """How many syncs old the weights were that answered; 0: on-policy."""


class Conditions(_Part):
    """What an arm ran under; a part that was not measured is null."""

    precision: Precision | None = None
    micro_batch: MicroBatch | None = None
    shards: Shards | None = None
    logprob_path: LogprobPath | None = None
    rollout_copy: RolloutCopy | None = None
    overlap: Overlap | None = None


class Difference(_Part):
    """Two arms that do not compare, and why."""

    arms: tuple[str, str]
    what: Condition
    values: dict[str, dict[str, Value]]
    """Arm -> the values that differ."""


COMPARED = {
    "micro_batch": ("tokens",),
    "rollout_copy": ("dtype", "max_num_seqs", "max_model_len", "kv_cache_tokens", "sleeps"),
}
"""Parts of which not everything decides; the rest is there to explain it, or says by which way the
same weights came."""
MEASURED = ("tokens", "kv_cache_tokens")
"""Values that may differ by `TOLERANCE`."""


def differences(arms: Mapping[str, Conditions]) -> list[Difference]:
    """Every two arms whose conditions differ, condition by condition; [] if all compare.

    A value that one of the two arms does not have is not compared. Equal conditions, or a single
    arm, give nothing.
    """
    found: list[Difference] = []
    for what in LABELS:
        for one, other in combinations(arms, 2):
            left, right = getattr(arms[one], what), getattr(arms[other], what)
            keys = [] if left is None or right is None else list(_unequal(what, left, right))
            if keys:
                values = {
                    name: {key: getattr(part, key) for key in keys}
                    for name, part in ((one, left), (other, right))
                }
                found.append(Difference(arms=(one, other), what=what, values=values))
    return found


def _unequal(what: str, one: _Part, other: _Part) -> Iterator[str]:
    for key in COMPARED.get(what, tuple(type(one).model_fields)):
        left, right = getattr(one, key), getattr(other, key)
        if left is None or right is None:
            continue
        slack = TOLERANCE * max(left, right) if key in MEASURED else 0
        if left != right and not (slack and abs(left - right) <= slack):
            yield key


def unfair_lines(found: list[Difference]) -> list[str]:
    """One line for each condition that differs: every value of it with the arms that have it."""
    lines = []
    for what, title in LABELS.items():
        values: dict[str, dict[str, Value]] = {}
        for difference in found:
            if difference.what == what:
                for name, own in difference.values.items():
                    values.setdefault(name, {}).update(own)
        arms: dict[str, list[str]] = {}
        for name, own in values.items():
            arms.setdefault(", ".join(f"{key} {own[key]}" for key in sorted(own)), []).append(name)
        if arms:
            shown = " against ".join(f"{text} ({', '.join(own)})" for text, own in arms.items())
            lines.append(f"unfair: not the same {title}: {shown}")
    return lines


def unfair_arms(found: list[Difference]) -> set[str]:
    """The arms that differ from any other."""
    return {name for difference in found for name in difference.arms}
