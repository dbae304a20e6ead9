"""From a score per response to an advantage per token.

Axes: B rows (responses), R response tokens (padded; `mask_BR` marks the valid ones, EOS included).
Nothing here carries a gradient. Padding never changes a result: padded entries come out as 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.kl import kl_estimate


@torch.no_grad()
def token_rewards(
    score_B: Tensor,
    old_logprobs_BR: Tensor,
    ref_logprobs_BR: Tensor,
    mask_BR: Tensor,
    kl_coef: float,
    clamp: float = 10.0,
) -> Tensor:
    """Reward of each token: the KL penalty everywhere, and the score on the last valid token.

        r_t = -kl_coef * (old_logprob_t - ref_logprob_t) + [t is the last valid token] * score

    k1, because k2 and k3 are biased as a penalty in the reward. Limiting case: policy = reference
    leaves only the score at EOS. Source: InstructGPT (arXiv 2203.02155), "N implementation details
    of RLHF with PPO".

    A row without a valid token (padding) must have score 0.
    Returns rewards_BR, 0 at padding.
    """
    mask_BR = mask_BR.bool()
    valid_B = mask_BR.any(-1)
    if bool((score_B[~valid_B] != 0).any()):
        raise ValueError("a response without tokens has a score: there is no token to put it on")
    kl_BR = kl_estimate(old_logprobs_BR, ref_logprobs_BR, "k1", clamp)
    rewards_BR = torch.where(mask_BR, -kl_coef * kl_BR, 0.0)
    index_R = torch.arange(mask_BR.shape[1], device=mask_BR.device)
    last_B = torch.where(mask_BR, index_R, -1).amax(-1)
    return rewards_BR + torch.where(index_R[None] == last_B[:, None], score_B[:, None], 0.0)


@torch.no_grad()
def gae(
    rewards_BR: Tensor, values_BR: Tensor, mask_BR: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over valid tokens, and the returns.

        delta_t = r_t + gamma * V_{t+1} - V_t
        A_t     = delta_t + gamma * gae_lambda * A_{t+1}
        return_t = A_t + V_t

    t + 1 is the next *valid* token; after the last one V and A are 0 (the response has ended).
    Returns are computed from the advantages before any whitening. Limiting cases: gae_lambda = 1
    makes return_t the discounted sum of rewards, whatever V; gae_lambda = 0 makes A_t = delta_t.
    Source: Schulman et al. (arXiv 1506.02438) equation 16.

    Returns advantages_BR, returns_BR, both 0 at padding.
    """
    assert rewards_BR.shape == values_BR.shape == mask_BR.shape
    mask_BR = mask_BR.bool()
    advantages_BR = torch.zeros_like(rewards_BR)
    next_value_B = next_advantage_B = rewards_BR.new_zeros(len(rewards_BR))
    for t in reversed(range(rewards_BR.shape[1])):
        valid_B = mask_BR[:, t]
        delta_B = rewards_BR[:, t] + gamma * next_value_B - values_BR[:, t]
        advantage_B = delta_B + gamma * gae_lambda * next_advantage_B
        next_advantage_B = torch.where(valid_B, advantage_B, next_advantage_B)
        next_value_B = torch.where(valid_B, values_BR[:, t], next_value_B)
        advantages_BR[:, t] = torch.where(valid_B, advantage_B, 0.0)
    return advantages_BR, torch.where(mask_BR, advantages_BR + values_BR, 0.0)


@torch.no_grad()
def group_relative(score_B: Tensor, group_B: Tensor) -> tuple[Tensor, int]:
    """GRPO: each score against the others of its group, in the group's standard deviations.

        A_i = (score_i - mean(group)) / (std(group) + 1e-6)

    std divides by n, so a group's advantages have mean 0 and mean square 1. Scores that are all
    equal (a group of one, too) give 0: nothing can be learnt from them, and dividing by their
    rounding error would make noise of size 1. Limiting case: two different scores give 1 and -1,
    however far apart. Source: DeepSeekMath (arXiv 2402.03300) section 4.1.2.

    Args:
        group_B: the group's number of each response.

    Returns advantages_B, and the number of groups whose scores are all equal.
    """
    advantages_B = torch.zeros_like(score_B)
    flat = 0
    for group in group_B.unique():
        mine_B = group_B == group
        scores = score_B[mine_B].double()
        if bool(scores.min() == scores.max()):
            flat += 1
            continue
        centred = scores - scores.mean()
        advantages_B[mine_B] = (centred / (scores.std(correction=0) + 1e-6)).to(score_B.dtype)
    return advantages_B, flat


@torch.no_grad()
def leave_one_out(reward_B: Tensor, group_B: Tensor) -> tuple[Tensor, int]:
    """RLOO: each reward less the mean of the *other* rewards of its group.

        A_i = R_i - sum_{j != i} R_j / (n - 1) = n / (n - 1) * (R_i - mean(group))

    A baseline that does not contain R_i leaves the policy gradient unbiased. Limiting cases: a
    group of one has no baseline and gets 0; equal rewards give 0; of two, each is the other's
    baseline.
    Source: Ahmadian et al. (arXiv 2402.14740) section 3.

    Args:
        group_B: the group's number of each response.

    Returns advantages_B, and the number of groups whose rewards are all equal.
    """
    advantages_B = torch.zeros_like(reward_B)
    flat = 0
    for group in group_B.unique():
        mine_B = group_B == group
        rewards = reward_B[mine_B].double()
        if bool(rewards.min() == rewards.max()):
            flat += 1
            continue
        others = (rewards.sum() - rewards) / (len(rewards) - 1)
        advantages_B[mine_B] = (rewards - others).to(reward_B.dtype)
    return advantages_B, flat


@torch.no_grad()
def whiten(values_BR: Tensor, mask_BR: Tensor, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the valid tokens of the whole batch, 0 at padding.

    Call it on the global batch of a round (every rank, every micro-batch), never on a part:
    whitening parts would give each its own scale. The variance divides by n, so the result has
    mean square 1, and a single token gives 0.
    """
    mask_BR = mask_BR.bool()
    mean, var = _moments(values_BR, mask_BR)
    whitened_BR = (values_BR.double() - mean) * torch.rsqrt(var + eps)
    return torch.where(mask_BR, whitened_BR, 0.0).to(values_BR.dtype)


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over valid tokens.

    1: the critic predicts the returns; 0: no better than a constant; below 0: worse. nan when the
    returns do not vary, since then nothing is there to explain.
    """
    mask = mask.bool()
    _, residual_var = _moments(returns - values, mask)
    _, return_var = _moments(returns, mask)
    if float(return_var) == 0.0:
        return float("nan")
    return float(1.0 - residual_var / return_var)


def _moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of the valid entries, in float64; 0 and 0 when there is none."""
    valid = values[mask].double()
    if valid.numel() == 0:
        return valid.new_zeros(()), valid.new_zeros(())
    return valid.mean(), valid.var(correction=0)
