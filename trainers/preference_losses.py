"""Losses over pairs beside DPO's: without a reference, and across prompts.

Conventions and axes as in `trainers.losses`; P pairs of a micro-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trainers.losses import Metrics, as_metrics


def simpo_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    *,
    beta: float,
    gamma: float,
    normalizer: float,
) -> tuple[Tensor, Metrics]:
    """SimPO on the mean log-probability per token of each response, over `normalizer`.

        L = sum -log sigmoid(beta * (chosen - rejected) - gamma) / n

    No reference takes part. Limiting cases: equal means and gamma 0 give ln 2; the gradient is
    beta * sigmoid(gamma - beta * (chosen - rejected)), so pairs stop pulling once they are apart by
    well over gamma / beta. Source: Meng et al. (arXiv 2405.14734) equation 6.

    Args:
        chosen_P, rejected_P: log-probability of each response divided by its tokens.
        normalizer: pairs of the optimiser step.

    Metrics, all per pair: `loss/simpo`, `rewards/chosen`, `rewards/rejected`, `rewards/margins`,
    `rewards/accuracies` (without gamma), `logps/chosen`, `logps/rejected` (per token).
    """
    margin_P = beta * (chosen_P - rejected_P)
    total = -logsigmoid(margin_P - gamma).sum()
    sums = {
        "loss/simpo": total,
        "rewards/chosen": (beta * chosen_P).sum(),
        "rewards/rejected": (beta * rejected_P).sum(),
        "rewards/margins": margin_P.sum(),
        "rewards/accuracies": (margin_P > 0).sum(),
        "logps/chosen": chosen_P.sum(),
        "logps/rejected": rejected_P.sum(),
    }
    return total / normalizer, as_metrics(sums, torch.tensor(len(margin_P)))


def rpo_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    ref_chosen_P: Tensor,
    ref_rejected_P: Tensor,
    weights_PP: Tensor,
    *,
    beta: float,
    normalizer: float,
) -> tuple[Tensor, Metrics]:
    """RPO: every chosen response against every rejected one that it is contrasted with.

        s_ij = (chosen - ref_chosen)_i - (rejected - ref_rejected)_j
        L = sum_{ij: w_ij > 0} -log sigmoid(beta * w_ij * s_ij) / n

    Limiting cases: the identity as weights is DPO; policy = reference gives ln 2 per contrast.
    Source: Yin et al. (arXiv 2402.10958), section 3.

    Args:
        weights_PP: w_ij of chosen i and rejected j, 0 where they are not contrasted; a row adds up
            to 1. Without gradient.
        normalizer: contrasts of the optimiser step.

    Metrics: `loss/rpo` per contrast; per pair `rewards/chosen`, `rewards/rejected`,
    `rewards/margins`, `rewards/accuracies` of the pair's own two responses, `logps/chosen`,
    `logps/rejected`.
    """
    chosen_ratio_P = chosen_P - ref_chosen_P.detach()
    rejected_ratio_P = rejected_P - ref_rejected_P.detach()
    scaled_PP = beta * weights_PP.detach() * (chosen_ratio_P[:, None] - rejected_ratio_P[None, :])
    contrasted_PP = weights_PP > 0
    total = -logsigmoid(scaled_PP[contrasted_PP]).sum()
    sums = {
        "rewards/chosen": beta * chosen_ratio_P.sum(),
        "rewards/rejected": beta * rejected_ratio_P.sum(),
        "rewards/margins": beta * (chosen_ratio_P - rejected_ratio_P).sum(),
        "rewards/accuracies": (chosen_ratio_P > rejected_ratio_P).sum(),
        "logps/chosen": chosen_P.sum(),
        "logps/rejected": rejected_P.sum(),
    }
    metrics = as_metrics(sums, torch.tensor(len(chosen_P)))
    metrics |= as_metrics({"loss/rpo": total}, contrasted_PP.sum())
    return total / normalizer, metrics
