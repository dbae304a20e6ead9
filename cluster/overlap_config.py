"""Settings of what a round does at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from trainers.config import Settings
from trainers.data.errors import UserError

if TYPE_CHECKING:
    from cluster.config import RolloutConfig, TrainConfig
    from cluster.negatives_config import NegativesConfig
    from rewards.config import AnyJudge
    from trainers.config import MethodConfig


class OverlapConfig(Settings):
    """Work of a round that is done at the same time (docs/performance.md); off by default."""

    judge_slices: int = Field(default=1, ge=1)
    """Slices of a round's prompts: each is judged while the next is being answered. 1: the judge
    waits for all answers."""
    off_policy_steps: int = Field(default=0, ge=0, le=1)
    """1: the engine answers the next round's prompts while this round trains, with the weights
    that it has, which are then one round old. Weights go through the object store, which keeps them
    for an engine that has to be replaced."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Of the weight pi_old / pi_rollout that corrects a token for that (PPO, GRPO). Not below 1,
    which is the weight of a token that needs no correction."""


def require_overlap_fits(
    overlap: OverlapConfig,
    rollout: RolloutConfig,
    train: TrainConfig,
    made: NegativesConfig,
    judge: AnyJudge | None,
    method: MethodConfig,
) -> None:
    """Refuse overlap where copies or engines take turns on one device, nothing overlaps, or the
    next round's prompts are not known yet.
    """
    for key, on in (
        ("overlap.judge_slices", overlap.judge_slices > 1),
        ("overlap.off_policy_steps", overlap.off_policy_steps > 0),
    ):
        if not on:
            continue
        for other, turns in (
            ("train.time_slice", train.time_slice),
            ("rollout.sleep", rollout.sleep),
        ):
            if turns:
                raise UserError(
                    f"{key}={getattr(overlap, key.split('.')[1])}: with {other} the copies take "
                    f"turns on one device, and nothing can overlap; set {other}=false"
                )
        if made.rejected:
            raise UserError(
                f"{key}: pairs that are made need several calls in order; leave it out, or "
                "negatives.rejected"
            )
        if judge is not None and judge.asks_policy:
            raise UserError(
                f"{key}={getattr(overlap, key.split('.')[1])}: with judge.labeler=policy the judge "
                "asks the engine, which is busy answering then; give a model folder"
            )
    if not overlap.off_policy_steps:
        return
    from trainers.registry import make_method  # loads torch, which most commands do without

    if not make_method(method).asks_alike:
        raise UserError(
            f"overlap.off_policy_steps=1: what method.name={method.name} asks depends on the round "
            "before, and a round early that is not known; set overlap.off_policy_steps=0"
        )
    if train.transport in ("ipc", "nccl"):
        raise UserError(
            "overlap.off_policy_steps=1: an engine that is replaced needs weights that the policy "
            "has no more; set train.transport=object_store, which keeps them"
        )
