"""A reward on the tokens that a critique points at, beside the one at the end of the response."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from trainers.data.records import Finding


def dense_rewards(
    findings: Sequence[Finding], token_ends: Sequence[int], num_tokens: int, coef: float
) -> tuple[np.ndarray, int]:
    """-coef * severity at the last token of every bad finding's span, 0 elsewhere.

        r_t = -coef * sum of severity over bad findings whose span ends within token t

    `token_ends` are the characters there after each token, so the token sought is the first whose
    end is not before the span's. Limiting case: no bad finding, all 0. The idea of a reward on the
    segment that is wrong: RLHF-V (arXiv 2312.00849), fine-grained RLHF (arXiv 2306.01693).

    Returns the rewards, float32 of shape (R,), and the number of bad findings that have no place:
    without a span, or on a response without token ends.
    """
    rewards = np.zeros(num_tokens, dtype=np.float32)
    unplaced = 0
    for finding in findings:
        if finding.verdict != "bad":
            continue
        if finding.span is None or len(token_ends) != num_tokens:
            unplaced += 1
            continue
        token = bisect_left(token_ends, finding.span[1])
        rewards[min(token, num_tokens - 1)] -= coef * finding.severity
    return rewards, unplaced
