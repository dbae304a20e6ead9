"""Settings of `quartet reward train`; MM-RLHF's, but for the optimiser's on small models."""

from __future__ import annotations

from pydantic import Field

from trainers.config import Settings

EVALUATOR = (
    "You are an unbiased evaluator. Judge the answer above by the image: is what it says correct, "
    "is it clear, is it complete? Name what is wrong, and say what would be right."
)
"""Asks for a critique. In the sense of MM-RLHF's prompt, not in its words."""


class RewardTrainConfig(Settings):
    """How a critique-based reward model is trained from a preference file."""

    request: str = EVALUATOR
    """The turn after an answer that asks for its critique."""
    facts: bool = False
    """What the rows know of the image (`truth.facts` or `truth.captions`) stands in the prompt."""
    max_critique_tokens: int = Field(default=256, ge=1)
    """Longest critique that the judge will write."""
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=24, ge=1)
    """Pairs an optimiser step."""
    micro_batch_size: int = Field(default=16, ge=2)
    """Rows a forward, two for each pair."""
    learning_rate: float = Field(default=1e-6, gt=0)
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Of the steps; the learning rate then falls along a half cosine."""
    score_weight: float = Field(default=1.0, ge=0)
    critique_weight: float = Field(default=1.0, ge=0)
    center_coef: float = Field(default=0.01, ge=0)
    tie_weight: float = Field(default=1.0, ge=0)
    train_vision: bool = False
    """The vision tower too; MM-RLHF freezes it."""
    held_out_share: float = Field(default=0.1, ge=0, lt=1)
    """Of the questions, kept back and judged after training; 0: none."""
    bf16: bool = False
    max_model_len: int = Field(default=384, ge=16)
    """Of the engine that writes critiques of the held-out pairs."""
    num_threads: int | None = Field(default=None, ge=1)
    seed: int = 0
