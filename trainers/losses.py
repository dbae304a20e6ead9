"""Losses of the methods: pure functions of tensors.

Axes: B rows, R response tokens (padded, `mask_BR` true where valid).

Two conventions hold for every function here.

* A loss is a **sum** over valid tokens (or rows) divided by an explicit `normalizer`: the count of
  tokens (or rows) of the whole optimiser step, over all micro-batches and ranks. So gradients
  accumulated over micro-batches equal those of one large batch, whatever the lengths. (An engine
  that averages over ranks or accumulation steps must be given the loss times that number.)
* A metric is a pair **(sum, count)**, so that metrics of micro-batches and ranks add up;
  `metric_means` divides at the end.

Inputs at padding are replaced before use: even nan there changes neither loss nor gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trainers.kl import kl_estimate

Metrics = dict[str, tuple[float, float]]
"""Metric name to (sum, count)."""

PairLoss = Literal["sigmoid", "ipo"]

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this before exp, so that one wild token cannot overflow the step."""


def add_metrics(parts: Iterable[Mapping[str, tuple[float, float]]]) -> Metrics:
    """Metrics of micro-batches (or ranks) as those of the whole: sums and counts added by name."""
    total: Metrics = {}
    for part in parts:
        for name, (value, count) in part.items():
            old_value, old_count = total.get(name, (0.0, 0.0))
            total[name] = (old_value + value, old_count + count)
    return total


def metric_means(metrics: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The mean of each metric, sum / count; names with count 0 have no mean and are left out."""
    return {name: value / count for name, (value, count) in metrics.items() if count}


def ppo_policy_loss(
    logprobs_BR: Tensor,
    old_logprobs_BR: Tensor,
    advantages_BR: Tensor,
    mask_BR: Tensor,
    *,
    clip_range_low: float,
    clip_range_high: float,
    normalizer: float,
    weights_BR: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Clipped surrogate of PPO, summed over response tokens, over `normalizer`.

        ratio = exp(logprob - old_logprob)
        L = sum w * max(-A * ratio, -A * clip(ratio, 1 - clip_range_low, 1 + clip_range_high)) / n

    Limiting case: at ratio 1 the gradient is the policy gradient -A * grad logprob / n, and the
    clip fraction is 0; w = 1 is the loss without weights. Source: Schulman et al. (arXiv
    1707.06347) equation 7; separate bounds: DAPO (arXiv 2503.14476).

    Args:
        logprobs_BR: of the sampled tokens under the policy being trained (with gradient).
        old_logprobs_BR: under the policy that sampled, recomputed by the trainer.
        advantages_BR: whitened over the global batch.
        normalizer: valid tokens of the optimiser step.
        weights_BR: w, for tokens that other weights sampled (`trainers.importance`); without
            gradient, 1 where there are none.

    Metrics, all per token: `loss/policy`, `policy/clipfrac` (tokens on which the clip decides),
    `policy/approx_kl` (k3 of old against new), `policy/ratio`.
    """
    mask_BR, (logprobs_BR, old_logprobs_BR, advantages_BR) = _zero_padding(
        mask_BR, logprobs_BR, old_logprobs_BR, advantages_BR
    )
    old_logprobs_BR = old_logprobs_BR.detach()
    log_ratio_BR = (logprobs_BR - old_logprobs_BR).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_BR = log_ratio_BR.exp()
    unclipped_BR = -advantages_BR * ratio_BR
    clipped_BR = -advantages_BR * ratio_BR.clamp(1.0 - clip_range_low, 1.0 + clip_range_high)
    losses_BR = torch.maximum(unclipped_BR, clipped_BR)
    if weights_BR is not None:
        losses_BR = losses_BR * weights_BR.detach().masked_fill(~mask_BR, 0.0)
    total = losses_BR.sum()
    with torch.no_grad():
        sums = {
            "loss/policy": total,
            "policy/clipfrac": (clipped_BR > unclipped_BR).sum(),
            "policy/approx_kl": kl_estimate(
                old_logprobs_BR, logprobs_BR, "k3", MAX_LOG_RATIO
            ).sum(),
            "policy/ratio": (ratio_BR * mask_BR).sum(),
        }
    return total / normalizer, as_metrics(sums, mask_BR.sum())


def value_loss(
    values_BR: Tensor,
    old_values_BR: Tensor,
    returns_BR: Tensor,
    mask_BR: Tensor,
    *,
    value_clip_range: float,
    normalizer: float,
) -> tuple[Tensor, Metrics]:
    """Clipped squared error of the critic, summed over response tokens, over `normalizer`.

        V_clip = clip(V, V_old - value_clip_range, V_old + value_clip_range)
        L = sum 0.5 * max((V - return)^2, (V_clip - return)^2) / n

    Limiting case: an infinite `value_clip_range` is half the squared error; V = V_old is too.
    Source: "N implementation details of RLHF with PPO"; LLaVA-RLHF (arXiv 2309.14525) clips by 0.2.

    Args:
        old_values_BR: the critic's values when the rollouts were collected.
        normalizer: valid tokens of the optimiser step.

    Metrics, all per token: `loss/value`, `value/clipfrac`, `value/mean`.
    """
    mask_BR, (values_BR, old_values_BR, returns_BR) = _zero_padding(
        mask_BR, values_BR, old_values_BR, returns_BR
    )
    old_values_BR, returns_BR = old_values_BR.detach(), returns_BR.detach()
    clipped_values_BR = old_values_BR + (values_BR - old_values_BR).clamp(
        -value_clip_range, value_clip_range
    )
    unclipped_BR = (values_BR - returns_BR).square()
    clipped_BR = (clipped_values_BR - returns_BR).square()
    total = 0.5 * torch.maximum(unclipped_BR, clipped_BR).sum()
    sums = {
        "loss/value": total,
        "value/clipfrac": (clipped_BR > unclipped_BR).sum(),
        "value/mean": values_BR.sum(),
    }
    return total / normalizer, as_metrics(sums, mask_BR.sum())


def dpo_loss(
    chosen_logprobs_B: Tensor,
    rejected_logprobs_B: Tensor,
    ref_chosen_B: Tensor,
    ref_rejected_B: Tensor,
    *,
    beta: float | Tensor,
    kind: PairLoss = "sigmoid",
    label_smoothing: float = 0.0,
    normalizer: float,
) -> tuple[Tensor, Metrics]:
    """DPO or IPO on one logprob per response, summed over pairs, over `normalizer`.

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        L = sum [(1 - s) * l(h) + s * l(-h)] / n

        sigmoid: l(h) = -log sigmoid(beta * h)
        ipo:     l(h) = (h - 1 / (2 * beta))^2

    with s = `label_smoothing`, the share of pairs believed to be mislabelled. Limiting cases:
    policy = reference gives ln 2 per pair for any beta, with ipo 1 / (4 * beta^2); s = 0.5 has its
    minimum at h = 0. Gradient of sigmoid at s = 0:
    beta * sigmoid(-beta * h) * (grad NLL(chosen) - grad NLL(rejected)) per pair. ipo's vanishes at
    h = 1 / (2 * beta), so that h stays finite however sure the labels are.
    Source: Rafailov et al. (arXiv 2305.18290) equation 7; IPO: Azar et al. (arXiv 2310.12036)
    equation 17, whose tau is our beta.

    Args:
        chosen_logprobs_B: summed over the response's tokens (or their mean, for all four alike).
        beta: one number, or one per pair (`dynamic_beta`), without gradient.
        normalizer: pairs of the optimiser step.

    Metrics, all per pair, with the beta that the pair was trained with: `loss/dpo`,
    `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies`, `logps/chosen`,
    `logps/rejected`.
    """
    beta_B = torch.as_tensor(beta, device=chosen_logprobs_B.device).detach()
    chosen_B = beta_B * (chosen_logprobs_B - ref_chosen_B.detach())
    rejected_B = beta_B * (rejected_logprobs_B - ref_rejected_B.detach())
    margin_B = chosen_B - rejected_B

    def pair_loss(scaled_B: Tensor) -> Tensor:
        """The loss l(h) of beta * h."""
        if kind == "ipo":
            return (scaled_B / beta_B - 0.5 / beta_B).square()
        return -logsigmoid(scaled_B)

    losses_B = (1.0 - label_smoothing) * pair_loss(margin_B)
    if label_smoothing:
        losses_B = losses_B + label_smoothing * pair_loss(-margin_B)
    total = losses_B.sum()
    sums = {
        "loss/dpo": total,
        "rewards/chosen": chosen_B.sum(),
        "rewards/rejected": rejected_B.sum(),
        "rewards/margins": margin_B.sum(),
        "rewards/accuracies": (margin_B > 0).sum(),
        "logps/chosen": chosen_logprobs_B.sum(),
        "logps/rejected": rejected_logprobs_B.sum(),
    }
    return total / normalizer, as_metrics(sums, torch.tensor(len(margin_B)))


def dynamic_beta(margin_B: Tensor, *, beta: float, w: float = 0.5, k: float = 0.5) -> Tensor:
    """MM-DPO's beta per pair from the judge's margin, within [beta, (1 + w) * beta].

        beta(margin) = beta * (1 + w * (1 - exp(-k * margin)))

    Limiting cases: beta at margin <= 0, (1 + w) * beta at infinity, 1.19673 * beta at margin 1 with
    w = k = 0.5. Source: the paper's formula (arXiv 2502.10391); the authors' released code uses a
    batch-level implicit margin instead, which the paper advises against.
    """
    margin_B = margin_B.detach().clamp(min=0.0)
    return beta * (1.0 - w * torch.expm1(-k * margin_B))


def sft_loss(
    logprobs_BR: Tensor, mask_BR: Tensor, weights_B: Tensor, *, normalizer: float
) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood of the marked tokens, rows weighted, over `normalizer`.

        L = sum_b weight_b * sum_t -logprob_bt / n

    nSFT's L(chosen) + L(corrective turns), each a token mean, is one call with `normalizer` 1 and
    row weights 1 / (tokens of that kind in the optimiser step), or two calls added. Limiting case:
    weights 1 and n = valid tokens give the usual cross-entropy; weight 0 removes a row.

    Args:
        mask_BR: the answer tokens, EOS included; question and image tokens are not targets.
        weights_B: weight of each row.
        normalizer: valid tokens of the optimiser step (or 1, see above).

    Metrics: `loss/sft` (weighted sum over token count) and `sft/nll` (unweighted), per token.
    """
    mask_BR, (logprobs_BR,) = _zero_padding(mask_BR, logprobs_BR)
    nll_B = -logprobs_BR.sum(-1)
    total = (nll_B * weights_B).sum()
    return total / normalizer, as_metrics(
        {"loss/sft": total, "sft/nll": nll_B.sum()}, mask_BR.sum()
    )


def _zero_padding(mask_BR: Tensor, *tensors: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The mask as bool, and the tensors with padding set to 0 (their gradient there is 0 too)."""
    mask_BR = mask_BR.bool()
    for tensor in tensors:
        assert tensor.shape == mask_BR.shape, f"{tuple(tensor.shape)} != {tuple(mask_BR.shape)}"
    return mask_BR, [tensor.masked_fill(~mask_BR, 0.0) for tensor in tensors]


def as_metrics(sums: dict[str, Tensor], count: Tensor) -> Metrics:
    """(sum, count) floats, with one device synchronisation for all of them."""
    tensors = [value.detach().float() for value in sums.values()]
    *values, number = torch.stack([*tensors, count.float().to(tensors[0].device)]).tolist()
    return {name: (value, number) for name, value in zip(sums, values, strict=True)}
