"""Online PPO with a critic: 4 copies (policy, critic, reference, reward).

How it departs from textbook PPO (Schulman et al., arXiv 1707.06347), following the practice that
`docs/methods.md` lists with sources:

1. The reward of token t is -kl_coef * (log pi_old - log pi_ref)_t (k1, no gradient), plus the
   judge's score at the last response token, EOS included.
2. The score is standardised by the mean and spread of the first round, so that its scale does not
   depend on the judge; it is never normalised per minibatch.
3. A response cut off by the length limit gets `missing_eos_penalty` added to its score. With
   `dense_coef`, what a critique calls bad is also punished where it stands (`trainers.dense`).
4. Advantages by GAE over response tokens only, whitened over the whole round after the returns
   are taken.
5. `old_logprobs` are recomputed by the trainer for the sampled tokens; the engine's own are only
   compared with them.
6. The critic sees the image: it is the reward model's VLM backbone with a value head. The first
   `critic_warmup_rounds` train it alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainers.advantages import explained_variance, gae, token_rewards, whiten
from trainers.batch import Batch, Group, Row, unpad
from trainers.config import PPOConfig
from trainers.data.records import Sample, ScoredRollout
from trainers.dense import dense_rewards
from trainers.importance import NAME as IMPORTANCE
from trainers.losses import Metrics, ppo_policy_loss, value_loss
from trainers.method import Method, Optimisation, Outputs, Selection, Signal
from trainers.roles import Copy, Role
from trainers.score_scale import ScoreScale


class PPO(Method):
    """PPO with a critic; see the module's head."""

    name = "ppo"
    copies = (
        Copy("policy", trained=True),
        Copy("critic", trained=True),
        Copy("reference", trained=False),
        Copy("reward", trained=False),
    )
    signals = (
        Signal("old_logprobs", "policy"),
        Signal("ref_logprobs", "reference"),
        Signal("old_values", "critic"),
    )

    def __init__(self, config: PPOConfig):
        self.config = config
        self.scale = ScoreScale(config.score_clip)
        self.rounds = 0

    def select(
        self, scored: Sequence[ScoredRollout], samples: Mapping[str, Sample], rng: random.Random
    ) -> Selection:
        """The round's rows, from judged rollouts."""
        kept = [item for item in scored if item.score is not None]
        scores = self.scale.standardise([item.score for item in kept if item.score is not None])
        groups: list[Group] = []
        unplaced = 0
        for item, score in zip(kept, scores, strict=True):
            cut = item.rollout.finish_reason != "stop"
            penalty = self.config.missing_eos_penalty if cut else 0.0
            row = Row.of_response(
                samples[item.rollout.sample_id],
                item.rollout.token_ids,
                item.rollout.id,
                score=score + penalty,
            )
            if self.config.dense_coef:
                row.tokens["dense"], missed = dense_rewards(
                    item.critique.findings if item.critique else (),
                    item.rollout.token_ends,
                    len(item.rollout.token_ids),
                    self.config.dense_coef,
                )
                unplaced += missed
            groups.append((row,))
        stats = {"rows": float(len(groups))}
        if self.config.dense_coef:
            stats["dense/reward"] = float(sum(row.tokens["dense"].sum() for (row,) in groups))
            stats["dense/unplaced"] = float(unplaced)
        return Selection(groups, stats, why_empty="no response has a score")

    def prepare(self, groups: Sequence[Group]) -> dict[str, float]:
        """From signals to targets, over the whole round."""
        rows = [row for (row,) in groups]
        mask_BR = _pad([np.ones_like(row.tokens["old_logprobs"]) for row in rows]).bool()
        old_BR = _pad([row.tokens["old_logprobs"] for row in rows])
        ref_BR = _pad([row.tokens["ref_logprobs"] for row in rows])
        values_BR = _pad([row.tokens["old_values"] for row in rows])
        score_B = torch.tensor([row.scalars["score"] for row in rows])
        rewards_BR = token_rewards(
            score_B, old_BR, ref_BR, mask_BR, self.config.kl_coef, self.config.log_ratio_clamp
        )
        if self.config.dense_coef:
            rewards_BR += _pad([row.tokens["dense"] for row in rows])
        advantages_BR, returns_BR = gae(
            rewards_BR, values_BR, mask_BR, self.config.gamma, self.config.gae_lambda
        )
        whitened_BR = whiten(advantages_BR, mask_BR)
        for row, advantages, returns in zip(
            rows, unpad(whitened_BR, mask_BR), unpad(returns_BR, mask_BR), strict=True
        ):
            row.tokens["advantages"], row.tokens["returns"] = advantages, returns
        self.rounds += 1
        kl_B = ((old_BR - ref_BR) * mask_BR).sum(1)
        return {
            "objective/kl": float(kl_B.mean()),
            "objective/scores": float(score_B.mean()),
            "objective/non_score_reward": float(-self.config.kl_coef * kl_B.mean()),
            "objective/rlhf_reward": float((rewards_BR * mask_BR).sum(1).mean()),
            "val/explained_variance": explained_variance(values_BR, returns_BR, mask_BR),
        }

    def state(self) -> dict[str, Any]:
        """The score's unit, and how many rounds have been trained: of the critic's warm-up."""
        return {"scale": self.scale.state(), "rounds": self.rounds}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.scale.load_state(state["scale"])
        self.rounds = state["rounds"]

    def optimisation(self, role: Role) -> Optimisation:
        """How `role` is optimised in this round."""
        config = self.config
        if role == "critic":
            return Optimisation(
                learning_rate=config.critic_learning_rate,
                epochs=config.critic_epochs,
                minibatch_size=config.critic_minibatch_size,
                warmup_steps=config.warmup_steps,
            )
        warming_up = 0 < self.rounds <= config.critic_warmup_rounds
        return Optimisation(
            learning_rate=config.learning_rate,
            epochs=0 if warming_up else config.epochs,
            minibatch_size=config.minibatch_size,
            warmup_steps=config.warmup_steps,
        )

    def loss(
        self, role: Role, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch as a share of the optimiser step, and metrics."""
        if role == "critic":
            assert outputs.values_BR is not None
            loss, metrics = value_loss(
                outputs.values_BR,
                batch.tokens["old_values"],
                batch.tokens["returns"],
                batch.mask_BR,
                value_clip_range=self.config.value_clip_range,
                normalizer=totals["tokens"],
            )
            return self.config.vf_coef * loss, metrics
        assert outputs.logprobs_BR is not None
        return ppo_policy_loss(
            outputs.logprobs_BR,
            batch.tokens["old_logprobs"],
            batch.tokens["advantages"],
            batch.mask_BR,
            clip_range_low=self.config.clip_range,
            clip_range_high=self.config.clip_range,
            normalizer=totals["tokens"],
            weights_BR=batch.tokens.get(IMPORTANCE),
        )


def _pad(arrays: Sequence[np.ndarray]) -> Tensor:
    return pad_sequence(
        [torch.from_numpy(np.array(array, dtype=np.float32)) for array in arrays], batch_first=True
    )
