"""RLAIF-V's self-feedback at inference (arXiv 2405.17220): the policy ranks its own answers.

A policy that was trained with DPO carries an implicit reward. Averaged over the answer's tokens, so
that short answers are not preferred, it chooses the best of N samples without any judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

BETA = 0.1


def implicit_reward(
    logprobs: Sequence[float], ref_logprobs: Sequence[float], beta: float = BETA
) -> float:
    """r(y) = (beta / T) * sum_t [ log pi(y_t) - log pi_ref(y_t) ] over the T tokens, EOS included.

    Both at temperature 1. Limiting case: 0 for pi = pi_ref. The order of answers does not depend
    on beta.

    Raises:
        ValueError: no tokens, different numbers of them, or a value that is not finite.
    """
    if len(logprobs) != len(ref_logprobs) or not len(logprobs):
        raise ValueError(f"{len(logprobs)} and {len(ref_logprobs)} log-probabilities of one answer")
    total = math.fsum(logprobs) - math.fsum(ref_logprobs)
    if not math.isfinite(total):
        raise ValueError("a log-probability is not finite")
    return beta * total / len(logprobs)


def best(rewards: Sequence[float]) -> int:
    """Index of the highest reward; of equal ones the first."""
    return max(range(len(rewards)), key=lambda index: rewards[index])
