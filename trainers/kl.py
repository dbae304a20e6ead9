"""KL estimates from logprobs of sampled tokens, and the coefficient's controllers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, assert_never

from torch import Tensor

KLKind = Literal["k1", "k2", "k3"]


def kl_estimate(
    logprobs: Tensor, ref_logprobs: Tensor, kind: KLKind, clamp: float = 10.0
) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens sampled by the policy.

    With d = logprobs - ref_logprobs, clamped to [-clamp, clamp]:

        k1 = d                  unbiased, signed; the penalty inside a reward (stop-gradient)
        k2 = d^2 / 2            biased, its gradient is that of the KL; use as a loss
        k3 = exp(-d) - 1 + d    unbiased, never negative; use as a loss or as a metric

    Limiting case: d = 0 gives 0 for all three, and near 0 both k1^2 / 2 = k2 and k3 = k2.
    A clamped token has no gradient. Source: Schulman, "Approximating KL divergence" (2020);
    the clamp of 10 is OpenRLHF's. Shapes: any, equal; the result has the same shape.
    """
    diff = (logprobs - ref_logprobs).clamp(-clamp, clamp)
    match kind:
        case "k1":
            return diff
        case "k2":
            return 0.5 * diff.square()
        case "k3":
            return (-diff).expm1() + diff
        case _:
            assert_never(kind)


def kl_loss(
    logprobs_BR: Tensor,
    ref_logprobs_BR: Tensor,
    mask_BR: Tensor,
    *,
    clamp: float = 10.0,
    normalizer: float,
    weights_BR: Tensor | None = None,
) -> Tensor:
    """KL(policy || reference) as a term of the loss: k3 with gradient, summed over tokens.

        L = sum w * (exp(ref - logprob) - 1 - (ref - logprob)) / n

    Limiting cases: policy = reference gives 0 with gradient 0; w = 1 is the loss without weights.
    Its gradient is w * (1 - exp(ref - logprob)) * grad logprob, with the samples' distribution
    taken as given. Source: DeepSeekMath (arXiv 2402.03300) equation 4; that other policies' samples
    need weights: DeepSeek-V3.2 (arXiv 2512.02556) equation 7, where w is policy / sampler.

    Args:
        mask_BR: valid tokens; padding has no part in value and gradient.
        normalizer: valid tokens of the optimiser step.
        weights_BR: w, for tokens that other weights sampled (`trainers.importance`); without
            gradient, 1 where there are none.
    """
    mask_BR = mask_BR.bool()
    logprobs_BR = logprobs_BR.masked_fill(~mask_BR, 0.0)
    ref_BR = ref_logprobs_BR.detach().masked_fill(~mask_BR, 0.0)
    kl_BR = kl_estimate(logprobs_BR, ref_BR, "k3", clamp)
    if weights_BR is not None:
        kl_BR = kl_BR * weights_BR.detach().masked_fill(~mask_BR, 0.0)
    return kl_BR.sum() / normalizer


class KLController(Protocol):
    """Owns `coef`, the weight of the KL penalty."""

    coef: float

    def update(self, kl: float, num_steps: int) -> float:
        """Take in the KL of the batch just collected and return the new coefficient."""
        ...


@dataclass(kw_only=True)
class FixedKL:
    """The coefficient stays as configured."""

    coef: float

    def update(self, kl: float, num_steps: int) -> float:
        """Return the coefficient, unchanged."""
        return self.coef


@dataclass(kw_only=True)
class AdaptiveKL:
    """Move the coefficient so that the KL approaches a target.

        error = clip(kl / target - 1, -0.2, 0.2)
        coef <- coef * (1 + error * num_steps / horizon)

    Limiting case: kl = target leaves the coefficient alone; kl twice the target and
    num_steps = horizon multiplies it by 1.2. Source: Ziegler et al. (arXiv 1909.08593) section 2.2.
    """

    coef: float
    target: float
    """In the unit of the `kl` given to `update`: per response or per token, as the caller likes."""
    horizon: float

    def __post_init__(self) -> None:
        if self.target <= 0 or self.horizon <= 0:
            raise ValueError(f"target and horizon must be above 0: {self.target}, {self.horizon}")

    def update(self, kl: float, num_steps: int) -> float:
        """Take in the current batch's mean KL, `num_steps` samples after the last update."""
        if not math.isfinite(kl):
            raise ValueError(f"KL of the batch is {kl}")
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coef *= 1.0 + error * num_steps / self.horizon
        return self.coef
