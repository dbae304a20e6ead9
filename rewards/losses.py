"""Loss of the critique-based reward model.

Axes: B pairs, R critique tokens (padded; each side has its own R).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trainers.losses import Metrics


def critique_reward_loss(
    chosen_score_B: Tensor,
    rejected_score_B: Tensor,
    chosen_critique_logprobs_BR: Tensor,
    chosen_critique_mask_BR: Tensor,
    rejected_critique_logprobs_BR: Tensor,
    rejected_critique_mask_BR: Tensor,
    *,
    normalizer: float,
    critique_normalizer: float,
    score_weight: float = 1.0,
    critique_weight: float = 1.0,
    center_coef: float = 0.01,
    tie_weight: float = 1.0,
    margin_B: Tensor | None = None,
    is_tie_B: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Bradley-Terry on scores after a critique, likelihood of both critiques, and centring.

        L = score_weight * S / n + critique_weight * C / m + center_coef * sum (r_c + r_r)^2 / n
        S = sum over untied pairs of -log sigmoid(r_c - r_r - margin)
            + tie_weight * sum over ties of (r_c - r_r)^2
        C = sum of -logprob over the critique tokens of both sides

    The scores r are teacher-forced: read after the ground-truth critique. A side without a critique
    has an all-false mask and adds nothing to C. Bradley-Terry sees only differences, so centring
    fixes the scale's zero. Limiting case: equal scores of 0 and no critiques give ln 2 per pair.
    Source: MM-RLHF (arXiv 2502.10391), whose script has both weights 1 and centring 0.01.

    Args:
        normalizer: n, pairs of the optimiser step (ties included).
        critique_normalizer: m, critique tokens of both sides in the optimiser step; 0 when no pair
            has a critique. C / m is the token mean over both sides.
        margin_B: subtracted from the score difference; None is 0.
        is_tie_B: true where the pair is a tie; None is no ties.

    Metrics: `loss/score`, `rewards/chosen`, `rewards/rejected` per pair, `rewards/margins` and
    `rewards/accuracies` per untied pair, `loss/critique` per critique token.
    """
    tie_B = torch.zeros_like(chosen_score_B, dtype=torch.bool) if is_tie_B is None else is_tie_B
    tie_B = tie_B.bool()
    diff_B = chosen_score_B - rejected_score_B
    shifted_B = diff_B if margin_B is None else diff_B - margin_B
    score_B = torch.where(tie_B, tie_weight * diff_B.square(), -logsigmoid(shifted_B))
    center_B = (chosen_score_B + rejected_score_B).square()
    chosen_nll, chosen_tokens = _nll(chosen_critique_logprobs_BR, chosen_critique_mask_BR)
    rejected_nll, rejected_tokens = _nll(rejected_critique_logprobs_BR, rejected_critique_mask_BR)
    critique_nll = chosen_nll + rejected_nll
    loss = (
        score_weight * score_B.sum() / normalizer
        + critique_weight * critique_nll / max(critique_normalizer, 1.0)
        + center_coef * center_B.sum() / normalizer
    )
    pairs, untied = float(len(diff_B)), float((~tie_B).sum())
    metrics = {
        "loss/score": (score_B.sum().item(), pairs),
        "loss/critique": (critique_nll.item(), chosen_tokens + rejected_tokens),
        "rewards/chosen": (chosen_score_B.sum().item(), pairs),
        "rewards/rejected": (rejected_score_B.sum().item(), pairs),
        "rewards/margins": (diff_B[~tie_B].sum().item(), untied),
        "rewards/accuracies": (float((diff_B[~tie_B] > 0).sum()), untied),
    }
    return loss, metrics


def _nll(logprobs_BR: Tensor, mask_BR: Tensor) -> tuple[Tensor, float]:
    """Summed negative log-likelihood of the marked tokens, and how many there are."""
    mask_BR = mask_BR.bool()
    return -logprobs_BR.masked_fill(~mask_BR, 0.0).sum(), float(mask_BR.sum())
