"""Reward-weighted SFT: every response, as much as it is worth: 1 copy (policy).

    L = sum_i w_i * NLL(y_i) / sum_i w_i * |y_i|,   w = softmax_i(score_i / lambda) within a prompt

From "RLHF in an SFT Way" (VAR, arXiv 2502.11026): the nearest policy to ref * exp(score / lambda)
is found by weighted SFT, with weights ref(y) * exp(score / lambda) / Z. Our responses are sampled
from the policy that the round starts from, which plays ref, so ref(y) cancels against the sampling
probability, and Z is estimated by the prompt's group: what is left is the softmax. Nothing is
subtracted and no weight is negative.

lambda is `weight_temperature`, in standard deviations of the first round's scores. Limiting cases:
towards 0 only the best response counts (rejection sampling); towards infinity all count alike,
and nothing of the judge is left. The paper's own lambda and its estimate of Z are not published;
dividing by the weighted count of tokens (and not of responses) is ours, as for SFT.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from trainers.batch import Batch, Group, Row
from trainers.config import RewardWeightedConfig
from trainers.data.records import Sample, ScoredRollout
from trainers.finished import finished_by_prompt
from trainers.losses import Metrics, sft_loss
from trainers.method import Method, Optimisation, Outputs, Selection
from trainers.roles import Copy, Role
from trainers.score_scale import ScoreScale


class RewardWeighted(Method):
    """Reward-weighted SFT; see the module's head."""

    name = "reward_weighted"
    copies = (Copy("policy", trained=True),)

    def __init__(self, config: RewardWeightedConfig):
        self.config = config
        self.scale = ScoreScale(math.inf)

    def select(
        self, scored: Sequence[ScoredRollout], samples: Mapping[str, Sample], rng: random.Random
    ) -> Selection:
        """A row for every finished response, with its `weight`; a prompt's weights add up to 1."""
        stats: dict[str, float] = {}
        groups: list[Group] = []
        effective = 0.0
        self.scale.fit([item.score for item in scored if item.score is not None])
        prompts = finished_by_prompt(scored, stats)
        for sample_id, items in prompts.items():
            scores = self.scale.standardise([i.score for i in items if i.score is not None])
            weights = softmax_weights(scores, self.config.weight_temperature)
            effective += 1.0 / sum(weight * weight for weight in weights)
            for item, weight in zip(items, weights, strict=True):
                rollout = item.rollout
                row = Row.of_response(
                    samples[sample_id], rollout.token_ids, rollout.id, weight=weight
                )
                groups.append((row,))
        stats["weights/effective_responses"] = effective / max(len(prompts), 1)
        return Selection(groups, stats, why_empty="no response has a score and ended by itself")

    def state(self) -> dict[str, Any]:
        """The score's unit."""
        return {"scale": self.scale.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.scale.load_state(state["scale"])

    def optimisation(self, role: Role) -> Optimisation:
        """How `role` is optimised in this round."""
        return Optimisation.of(self.config)

    def totals(self, batch: Batch) -> dict[str, float]:
        """Counts that the loss divides by."""
        tokens_B = batch.mask_BR.sum(1).float()
        return {"weighted_tokens": float((tokens_B * batch.scalars["weight"]).sum())}

    def loss(
        self, role: Role, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch as a share of the optimiser step, and metrics."""
        assert outputs.logprobs_BR is not None
        return sft_loss(
            outputs.logprobs_BR,
            batch.mask_BR,
            batch.scalars["weight"],
            normalizer=totals["weighted_tokens"],
        )


def softmax_weights(scores: Sequence[float], temperature: float) -> list[float]:
    """softmax(score / temperature): at least 0, with the sum 1; equal scores weigh alike."""
    top = max(scores)
    exps = [math.exp((score - top) / temperature) for score in scores]
    return [value / sum(exps) for value in exps]
