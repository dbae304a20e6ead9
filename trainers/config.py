"""Settings of the methods, every one shown in a run's `config.yaml`; unknown keys are refused.

Defaults are tuned for the built-in task on a CPU (a 1 M parameter model trained from scratch);
`docs/methods.md` lists the values that the papers use for 7B models.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimisationConfig(Settings):
    """What every method shares."""

    learning_rate: float = Field(gt=0)
    epochs: int = Field(default=2, ge=1)
    """Passes over a round's rows."""
    minibatch_size: int = Field(default=32, ge=1)
    """Groups (rows for PPO, pairs for the others) per optimiser step."""
    warmup_steps: int = Field(default=3, ge=0)
    """Optimiser steps of linear warm-up at the start of the run."""


class PairsConfig(Settings):
    """How preference pairs are mined from judged rollouts (RLAIF-V, arXiv 2405.17220)."""

    margin: float = Field(default=0.5, ge=0)
    """Least difference of scores that makes a pair."""
    max_pairs_per_prompt: int = Field(default=2, ge=1)
    """RLAIF-V keeps 2."""
    strategy: Literal["best_worst", "all"] = "best_worst"
    length_balance: bool = False
    """Drop pairs whose chosen side is much shorter, by RLAIF-V's threshold search."""


class CorrectionsConfig(Settings):
    """How nSFT writes corrective turns from findings."""

    max_turns: int = Field(default=6, ge=2)
    """Question-and-answer pairs per rejected response."""
    question_template: str = "is there a {claim} ?"
    yes: str = "yes"
    no: str = "no"


class PPOConfig(OptimisationConfig):
    """Online PPO with a critic."""

    name: Literal["ppo"] = "ppo"
    learning_rate: float = Field(default=1e-4, gt=0)
    minibatch_size: int = Field(default=64, ge=1)
    critic_learning_rate: float = Field(default=3e-4, gt=0)
    critic_epochs: int = Field(default=3, ge=1)
    critic_minibatch_size: int = Field(default=32, ge=1)
    """The critic starts with a new head and has to follow a moving policy: more and smaller steps
    than the policy takes."""
    critic_warmup_rounds: int = Field(default=0, ge=0)
    """Rounds at the start in which only the critic is trained."""
    kl_coef: float = Field(default=0.05, ge=0)
    clip_range: float = Field(default=0.2, gt=0)
    value_clip_range: float = Field(default=0.5, gt=0)
    vf_coef: float = Field(default=1.0, gt=0)
    gamma: float = Field(default=1.0, gt=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    score_clip: float = Field(default=5.0, gt=0)
    """Standardised scores are clipped to plus or minus this."""
    missing_eos_penalty: float = Field(default=-1.0, le=0)
    log_ratio_clamp: float = Field(default=10.0, gt=0)


class DPOConfig(OptimisationConfig):
    """Iterative DPO."""

    name: Literal["dpo"] = "dpo"
    learning_rate: float = Field(default=1e-4, gt=0)
    minibatch_size: int = Field(default=16, ge=1)
    beta: float = Field(default=0.1, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    dynamic_beta: bool = False
    """MM-DPO's beta(margin) = beta * (1 + w * (1 - exp(-k * margin)))."""
    dynamic_beta_w: float = Field(default=0.5, ge=0)
    dynamic_beta_k: float = Field(default=0.5, ge=0)
    sft_coef: float = Field(default=0.0, ge=0)
    """Weight of NLL(chosen), MM-DPO's gamma."""
    pairs: PairsConfig = PairsConfig()


class NSFTConfig(OptimisationConfig):
    """nSFT: chosen responses and corrective turns."""

    name: Literal["nsft"] = "nsft"
    learning_rate: float = Field(default=1e-4, gt=0)
    minibatch_size: int = Field(default=16, ge=1)
    chosen_coef: float = Field(default=1.0, ge=0)
    correction_coef: float = Field(default=1.0, ge=0)
    pairs: PairsConfig = PairsConfig()
    corrections: CorrectionsConfig = CorrectionsConfig()


class SFTConfig(OptimisationConfig):
    """SFT control: chosen responses only."""

    name: Literal["sft"] = "sft"
    learning_rate: float = Field(default=1e-4, gt=0)
    minibatch_size: int = Field(default=16, ge=1)
    pairs: PairsConfig = PairsConfig()


MethodConfig = PPOConfig | DPOConfig | NSFTConfig | SFTConfig
