"""Group-relative REINFORCE: 3 copies (policy, reference, reward); PPO without a critic.

The other answers to the same prompt are the baseline that PPO's critic has to learn. All tokens of
a response share one advantage. Two estimators:

    grpo   A = (score - mean) / std of the prompt's group; k3 to the reference in the loss
           (DeepSeekMath, arXiv 2402.03300)
    rloo   R = score - kl_coef * sum_t (log pi_old - log pi_ref)_t; A = R - mean of the others' R
           (Ahmadian et al., arXiv 2402.14740)

What the papers leave open, or do otherwise:

1. The loss is a mean over the tokens of the optimiser step (DAPO, arXiv 2503.14476), for both
   estimators. GRPO's paper takes the mean within a response first, which makes a token of a long
   wrong answer cheaper than one of a short one; RLOO's takes the whole response as one action.
2. RLOO's gradient is that of the clipped ratio, too: at the first minibatch the ratio is 1 and the
   clip has no part, so with one epoch and one minibatch a round it is REINFORCE.
3. Scores are standardised by the first round, as for PPO. For `grpo` only the penalty of a response
   that was cut off depends on it.
4. A group whose scores are all equal gives advantage 0 and is counted. Its rows stay in the batch:
   the KL term has them, and they count as tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.advantages import group_relative, leave_one_out
from trainers.batch import Batch, Group, Row
from trainers.config import GRPOConfig
from trainers.data.records import Sample, ScoredRollout
from trainers.importance import NAME as IMPORTANCE
from trainers.kl import kl_loss
from trainers.losses import Metrics, ppo_policy_loss
from trainers.method import Method, Optimisation, Outputs, Selection, Signal
from trainers.roles import Copy, Role
from trainers.score_scale import ScoreScale


class GRPO(Method):
    """GRPO and RLOO; see the module's head."""

    name = "grpo"
    copies = (
        Copy("policy", trained=True),
        Copy("reference", trained=False),
        Copy("reward", trained=False),
    )
    signals = (Signal("old_logprobs", "policy"), Signal("ref_logprobs", "reference"))

    def __init__(self, config: GRPOConfig):
        self.config = config
        self.scale = ScoreScale(config.score_clip)

    def select(
        self, scored: Sequence[ScoredRollout], samples: Mapping[str, Sample], rng: random.Random
    ) -> Selection:
        """A row for every response with a score; `prompt` numbers its group."""
        kept = [item for item in scored if item.score is not None]
        scores = self.scale.standardise([item.score for item in kept if item.score is not None])
        numbers: dict[str, int] = {}
        groups: list[Group] = []
        for item, score in zip(kept, scores, strict=True):
            rollout = item.rollout
            cut = rollout.finish_reason != "stop"
            row = Row.of_response(
                samples[rollout.sample_id],
                rollout.token_ids,
                rollout.id,
                score=score + (self.config.missing_eos_penalty if cut else 0.0),
                prompt=float(numbers.setdefault(rollout.sample_id, len(numbers))),
            )
            groups.append((row,))
        return Selection(groups, {"rows": float(len(groups))}, why_empty="no response has a score")

    def prepare(self, groups: Sequence[Group]) -> dict[str, float]:
        """Advantages, from the whole round's scores and log-probabilities."""
        rows = [row for (row,) in groups]
        limit = self.config.log_ratio_clamp
        score_B = torch.tensor([row.scalars["score"] for row in rows])
        group_B = torch.tensor([row.scalars["prompt"] for row in rows])
        ratios = [row.tokens["old_logprobs"] - row.tokens["ref_logprobs"] for row in rows]
        kl_B = torch.tensor([float(ratio.clip(-limit, limit).sum()) for ratio in ratios])
        if self.config.estimator == "rloo":
            advantage_B, flat = leave_one_out(score_B - self.config.kl_coef * kl_B, group_B)
        else:
            advantage_B, flat = group_relative(score_B, group_B)
        for row, advantage in zip(rows, advantage_B.tolist(), strict=True):
            row.tokens["advantages"] = np.full_like(row.tokens["old_logprobs"], advantage)
        num_groups = len(group_B.unique())
        return {
            "objective/kl": float(np.mean([ratio.sum() for ratio in ratios])),
            "objective/scores": float(score_B.mean()),
            "groups/num": float(num_groups),
            "groups/without_signal": float(flat),
            "groups/share_without_signal": flat / num_groups,
        }

    def state(self) -> dict[str, Any]:
        """The score's unit."""
        return {"scale": self.scale.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.scale.load_state(state["scale"])

    def optimisation(self, role: Role) -> Optimisation:
        """How `role` is optimised in this round."""
        return Optimisation.of(self.config)

    def loss(
        self, role: Role, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch as a share of the optimiser step, and metrics."""
        assert outputs.logprobs_BR is not None
        config = self.config
        loss, metrics = ppo_policy_loss(
            outputs.logprobs_BR,
            batch.tokens["old_logprobs"],
            batch.tokens["advantages"],
            batch.mask_BR,
            clip_range_low=config.clip_range,
            clip_range_high=config.clip_range,
            normalizer=totals["tokens"],
            weights_BR=batch.tokens.get(IMPORTANCE),
        )
        if config.estimator == "grpo" and config.kl_coef:
            kl = kl_loss(
                outputs.logprobs_BR,
                batch.tokens["ref_logprobs"],
                batch.mask_BR,
                clamp=config.log_ratio_clamp,
                normalizer=1.0,
                weights_BR=batch.tokens.get(IMPORTANCE),
            )
            loss = loss + config.kl_coef * kl / totals["tokens"]
            metrics["loss/kl"] = (float(kl.detach()), float(batch.mask_BR.sum()))
        return loss, metrics
