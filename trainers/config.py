"""Settings of the methods, every one shown in a run's `config.yaml`; unknown keys are refused.

Defaults are tuned for the built-in task on a CPU (a 1 M parameter model trained from scratch);
`docs/methods.md` lists the values that the papers use for 7B models.
"""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainers.data.errors import UserError


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimisationConfig(Settings):
    """What every method shares."""

    learning_rate: float = Field(gt=0)
    epochs: int = Field(default=2, ge=1)
    """Passes over a round's rows."""
    minibatch_size: int = Field(default=32, ge=1)
    """Groups per optimiser step: pairs; rows for PPO, GRPO and the SFT family; for RPO sets of
    `contrast_size` pairs."""
    warmup_steps: int = Field(default=3, ge=0)
    """Optimiser steps of linear warm-up at the start of the run."""


class PairsConfig(Settings):
    """How preference pairs are mined from judged rollouts (RLAIF-V, arXiv 2405.17220)."""

    margin: float = Field(default=0.5, ge=0)
    """Least difference of scores that makes a pair."""
    max_pairs_per_prompt: int = Field(default=2, ge=1)
    """RLAIF-V keeps 2. `all_ranks` and `best_random` have no cap of their own."""
    strategy: Literal["best_worst", "all", "all_ranks", "best_random"] = "best_worst"
    """`all`: a random choice of all pairs, RLAIF-V; `all_ranks`: every one, MM-RLHF; `best_random`:
    the best against a random worse one, mllm-dpo."""
    length_balance: bool = False
    """Drop pairs whose chosen side is much shorter, by RLAIF-V's threshold search."""


class CorrectionsConfig(Settings):
    """How nSFT writes corrective turns from findings."""

    max_turns: int = Field(default=6, ge=2)
    """Question-and-answer pairs per rejected response."""
    question_template: str = "is there a {claim} ?"
    yes: str = "yes"
    no: str = "no"
    writer: Literal["template", "short_answer", "llm"] = "template"
    """Templates over the judge's findings; short answers affirmed and denied; or a text model."""
    short_template: str = "{question} is the answer {answer} ?"
    short_words: int = Field(default=5, ge=1)
    """Longest answer that `short_answer` corrects."""
    model: str | None = None
    """Folder of the text model that `llm` asks."""

    @model_validator(mode="after")
    def _writer_is_there(self) -> Self:
        if (self.writer == "llm") != (self.model is not None):
            raise UserError(
                "method.corrections: writer=llm and model, a text model's folder, go together"
            )
        return self


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
    dense_coef: float = Field(default=0.0, ge=0)
    """Taken off at the last token of what a critique calls bad, times the finding's severity, in
    units of the standardised score."""
    log_ratio_clamp: float = Field(default=10.0, gt=0)


class DPOConfig(OptimisationConfig):
    """Iterative DPO."""

    name: Literal["dpo"] = "dpo"
    learning_rate: float = Field(default=1e-4, gt=0)
    minibatch_size: int = Field(default=16, ge=1)
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    beta: float = Field(default=0.1, gt=0)
    length_normalised: bool = False
    """Log-probabilities per token; beta then wants to be about as much larger as answers are
    long."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    dynamic_beta: bool = False
    """MM-DPO's beta(margin) = beta * (1 + w * (1 - exp(-k * margin)))."""
    dynamic_beta_w: float = Field(default=0.5, ge=0)
    dynamic_beta_k: float = Field(default=0.5, ge=0)
    sft_coef: float = Field(default=0.0, ge=0)
    """Weight of NLL(chosen), MM-DPO's gamma."""
    pairs: PairsConfig = PairsConfig()

    @model_validator(mode="after")
    def _dynamic_beta_fits(self) -> Self:
        if self.dynamic_beta and self.loss == "ipo":
            raise UserError(
                "method.dynamic_beta does not fit method.loss=ipo: there a larger beta for a wider "
                "margin asks for a smaller difference; set method.loss=sigmoid"
            )
        return self


class SimPOConfig(OptimisationConfig):
    """SimPO: pairs without a reference."""

    name: Literal["simpo"] = "simpo"
    learning_rate: float = Field(default=1e-4, gt=0)
    minibatch_size: int = Field(default=16, ge=1)
    beta: float = Field(default=2.0, gt=0)
    gamma: float = Field(default=1.0, ge=0)
    """Margin that the difference of beta * mean log-probability is to exceed."""
    sft_coef: float = Field(default=0.0, ge=0)
    """Weight of NLL(chosen): without a reference nothing else holds the policy."""
    pairs: PairsConfig = PairsConfig()


class RPOConfig(OptimisationConfig):
    """RPO: every chosen response against every rejected one of a set of pairs."""

    name: Literal["rpo"] = "rpo"
    learning_rate: float = Field(default=1e-4, gt=0)
    minibatch_size: int = Field(default=4, ge=1)
    contrast_size: int = Field(default=4, ge=1)
    """Pairs in a set; 1 is DPO. A set is never split, so a micro-batch holds at least one."""
    beta: float = Field(default=0.4, gt=0)
    """Contrast weights of a response add up to 1: each is about beta / contrast_size."""
    similarity_temperature: float = Field(default=0.5, gt=0)
    pairs: PairsConfig = PairsConfig()


class SELMConfig(OptimisationConfig):
    """SELM: DPO with an optimism term."""

    name: Literal["selm"] = "selm"
    learning_rate: float = Field(default=1e-4, gt=0)
    minibatch_size: int = Field(default=16, ge=1)
    beta: float = Field(default=0.1, gt=0)
    alpha: float = Field(default=0.001, ge=0)
    """Weight of the optimism term; 0 is DPO."""
    pairs: PairsConfig = PairsConfig()


class GRPOConfig(OptimisationConfig):
    """Group-relative REINFORCE: no critic."""

    name: Literal["grpo"] = "grpo"
    learning_rate: float = Field(default=1e-4, gt=0)
    minibatch_size: int = Field(default=64, ge=1)
    estimator: Literal["grpo", "rloo"] = "grpo"
    """`grpo`: (score - mean) / std of the prompt's group, KL in the loss; `rloo`: score and KL
    together, less the mean of the others."""
    kl_coef: float = Field(default=0.05, ge=0)
    clip_range: float = Field(default=0.2, gt=0)
    score_clip: float = Field(default=5.0, gt=0)
    """Standardised scores are clipped to plus or minus this."""
    missing_eos_penalty: float = Field(default=-1.0, le=0)
    log_ratio_clamp: float = Field(default=10.0, gt=0)


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
    target: Literal["mined", "data"] = "mined"
    """`data`: the answers in the data's column `chosen`, not the policy's own."""
    pairs: PairsConfig = PairsConfig()


class RejectionConfig(OptimisationConfig):
    """Rejection sampling: SFT on the best response to each prompt."""

    name: Literal["rejection"] = "rejection"
    learning_rate: float = Field(default=1e-4, gt=0)
    minibatch_size: int = Field(default=16, ge=1)
    min_score: float | None = None
    """Prompts whose best response scores less are left out; in the judge's own unit."""


class RewardWeightedConfig(OptimisationConfig):
    """Reward-weighted SFT: all responses to a prompt, weighted by exp(score / lambda)."""

    name: Literal["reward_weighted"] = "reward_weighted"
    learning_rate: float = Field(default=1e-4, gt=0)
    minibatch_size: int = Field(default=64, ge=1)
    weight_temperature: float = Field(default=0.3, gt=0)
    """lambda, in standard deviations of the first round's scores. Towards 0: the best response
    alone; towards infinity: all alike."""


class SteerLMConfig(OptimisationConfig):
    """SteerLM: SFT with the score, as words, in the prompt."""

    name: Literal["steerlm"] = "steerlm"
    learning_rate: float = Field(default=1e-4, gt=0)
    minibatch_size: int = Field(default=16, ge=1)
    attributes: dict[str, str] = {"score": "answer"}
    """What is told of a response (`score`, or one of the judge's components) and the word that
    stands for it in the prompt."""
    levels: tuple[str, ...] = Field(default=("zero", "one", "two", "three", "four"), min_length=2)
    """Words for the values, the best one last; each covers an equal share of the first round."""


class POVIDConfig(OptimisationConfig):
    """POVID: a right answer against its wrong version and against what noise makes of it."""

    name: Literal["povid"] = "povid"
    learning_rate: float = Field(default=1e-4, gt=0)
    minibatch_size: int = Field(default=16, ge=1)
    beta: float = Field(default=0.1, gt=0)
    text_coef: float = Field(default=0.05, ge=0)
    """Of the log-ratio of the wrong version; 0 leaves it out."""
    noise_coef: float = Field(default=0.05, ge=0)
    """Of the log-ratio under the distorted image; 0 leaves it out (the paper's first stage)."""
    noise_step: int = Field(default=500, ge=0, lt=1000)
    pairs: PairsConfig = PairsConfig(max_pairs_per_prompt=1)

    @model_validator(mode="after")
    def _has_negatives(self) -> Self:
        if not self.text_coef and not self.noise_coef:
            raise UserError("method.text_coef and method.noise_coef are both 0; set one above")
        return self


class SAPOConfig(OptimisationConfig):
    """SAPO: DPO against the policy's moving average, on pairs from a buffer."""

    name: Literal["sapo"] = "sapo"
    learning_rate: float = Field(default=1e-4, gt=0)
    minibatch_size: int = Field(default=16, ge=1)
    beta: float = Field(default=0.1, gt=0)
    ema_rate: float = Field(default=0.5, gt=0, le=1)
    """After each round the average is (1 - rate) of itself and rate of the policy."""
    replay_capacity: int = Field(default=2000, ge=1)
    """Pairs; the oldest leave."""
    replay_draws: int | None = Field(default=None, ge=1)
    """Pairs drawn a round; null: as many as the round brought."""
    pairs: PairsConfig = PairsConfig(max_pairs_per_prompt=1)


MethodConfig = (
    PPOConfig
    | GRPOConfig
    | DPOConfig
    | SimPOConfig
    | RPOConfig
    | SELMConfig
    | NSFTConfig
    | SFTConfig
    | RejectionConfig
    | RewardWeightedConfig
    | SteerLMConfig
    | POVIDConfig
    | SAPOConfig
)

METHODS: dict[str, type[MethodConfig]] = {
    config.model_fields["name"].default: config for config in get_args(MethodConfig)
}
"""Name -> the settings of a method."""
