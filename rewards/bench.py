"""How often a reward model orders known pairs rightly: MM-RLHF-RewardBench's two accuracies.

    ACC  = pairs with score(chosen) > score(rejected) / pairs
    ACC+ = questions all of whose pairs are ordered rightly / questions

Equal scores and pairs that could not be judged are not right. Limiting case: one pair a question
makes both equal. Source: MM-RLHF (arXiv 2502.10391), `eval_mm_reward_bench.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainers.data.preferences import ReasonedPair


def accuracies(
    pairs: Sequence[ReasonedPair], scores: Sequence[tuple[float | None, float | None]]
) -> dict[str, float]:
    """`acc`, `acc_plus` and `not_judged` (pairs), and both accuracies by category. Ties are left
    out: they have no order.

    Args:
        scores: of chosen and rejected, for each pair; None where the judge failed.
    """
    right: dict[str, dict[str, list[bool]]] = {"": {}}
    not_judged = 0
    for pair, (chosen, rejected) in zip(pairs, scores, strict=True):
        if pair.is_tie:
            continue
        judged = chosen is not None and rejected is not None
        not_judged += not judged
        correct = chosen is not None and rejected is not None and chosen > rejected
        for category in ("", pair.category):
            right.setdefault(category, {}).setdefault(pair.group, []).append(correct)
    result: dict[str, float] = {}
    for category, groups in right.items():
        suffix = f"/{category}" if category else ""
        pooled = [correct for group in groups.values() for correct in group]
        if pooled:
            result[f"acc{suffix}"] = sum(pooled) / len(pooled)
            result[f"acc_plus{suffix}"] = sum(map(all, groups.values())) / len(groups)
            result[f"pairs{suffix}"] = float(len(pooled))
    return result | {"not_judged": float(not_judged)}
