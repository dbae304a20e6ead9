"""Truncated importance sampling: rollouts from other weights than those that are trained.

With pi_roll the engine's policy when it answered, pi_old the trainer's before the round's first
step and pi the one being trained, the surrogate of a token is weighted by

    w = min(pi_old / pi_roll, C)

so that its expectation is that of a rollout from pi_old, but for what the cap C cuts off; PPO's own
ratio pi / pi_old stays what it is, and its clip, too. Source: Yao et al. (2025), "Your efficient RL
framework secretly brings you off-policy RL training"; the decoupled objective: AReaL (arXiv
2505.24298) section 5.2. GRPO's KL term, an estimate from the same tokens, has the same weights
(`trainers.kl.kl_loss`). The advantages are those of the rollouts as they are: GAE and PPO's returns
are not corrected.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainers.batch import Row
from trainers.data.records import ScoredRollout
from trainers.losses import MAX_LOG_RATIO

NAME = "importance"
"""Of the weights in `Row.tokens`; a loss that knows them multiplies by them."""


def truncated_weights(
    old_logprobs: np.ndarray, rollout_logprobs: np.ndarray, cap: float
) -> np.ndarray:
    """min(exp(old - rollout), cap) for every token; float32, as long as the inputs.

    Limiting cases: equal log-probabilities give 1 (if the cap allows it), and cap = inf the plain
    ratio, which is unbiased.
    """
    log_ratio = np.asarray(old_logprobs, np.float64) - np.asarray(rollout_logprobs, np.float64)
    ratio = np.exp(log_ratio.clip(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    weights: np.ndarray = np.minimum(ratio, cap).astype(np.float32)
    return weights


def attach_importance(
    rows: Sequence[Row], judged: Sequence[ScoredRollout], cap: float
) -> dict[str, float]:
    """Weights for the rows that have `old_logprobs`, from the rollouts of the same id. A method
    that asks for none has a loss that does not ask who sampled: its rows stay as they are.

    Metrics, per token: `importance/mean`, `importance/max`, `importance/truncated` (share that the
    cap cuts).
    """
    sampled = {item.rollout.id: item.rollout.logprobs for item in judged}
    found = []
    for row in rows:
        if "old_logprobs" in row.tokens:
            old, rollout = row.tokens["old_logprobs"], np.asarray(sampled[row.id])
            row.tokens[NAME] = truncated_weights(old, rollout, cap)
            found.append(row.tokens[NAME])
    if not found:
        return {}
    weights = np.concatenate(found)
    return {
        "importance/mean": float(weights.mean()),
        "importance/max": float(weights.max()),
        "importance/truncated": float((weights >= cap).mean()),
    }
