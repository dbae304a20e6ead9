"""What a comparison proves: whether the race was fair, and which of the project's claims hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainers.comparison import Comparison


def check_budgets(comparison: Comparison) -> list[str]:
    """One line for each budget that differs between the finished arms; [] if the race is fair.

    An arm whose scores are drawn by chance asks no judge, so only its rollouts are compared.
    """
    finished = [(name, arm) for name, arm in comparison.arms() if arm.failure is None]
    problems: list[str] = []
    budgets = {
        "rollouts": {name: arm.rollouts for name, arm in finished},
        "judge calls": {n: arm.judge_calls for n, arm in finished if arm.judge != "random"},
    }
    for what, counts in budgets.items():
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            problems.append(f"unequal budgets: {what} differ ({listed}); the arms do not compare")
    return problems


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim of the project, whether this run bears it out, and the numbers behind it."""

    claim: str
    holds: bool
    numbers: str


def all_warnings(comparison: Comparison) -> list[str]:
    """The warnings of the run and of `check_budgets`, each once."""
    return list(dict.fromkeys([*comparison.warnings, *check_budgets(comparison)]))


def verdicts(comparison: Comparison) -> list[Verdict]:
    """The claims that this comparison can decide; an arm that did not run has none.

    CHAIR_i cut by at least 50 % of the base's; recall at most 3 points lower; at least 90 % as
    many mentions as true objects (so the cut is not silence); nSFT's yes ratio in 40..60 %; random
    selection no better than the base beyond 10 % or two standard errors; the critic's explained
    variance above 0.2 on average over the last third of the rounds. A missing number fails; without
    a held-out evaluation of the base (data of one's own) there is nothing to decide.
    """
    base = comparison.base.metrics
    if not base:
        return []
    result: list[Verdict] = []
    for name, label in (("ppo", "PPO"), ("dpo", "DPO"), ("nsft", "nSFT")):
        if name in comparison.methods:
            result += _method_verdicts(label, base, comparison.methods[name].metrics)
    if "nsft" in comparison.methods:
        yes = comparison.methods["nsft"].metrics.get("pope_yes_ratio")
        holds = yes is not None and 0.4 <= yes <= 0.6
        numbers = f"{percent(base.get('pope_yes_ratio'))} to {percent(yes)}"
        result.append(Verdict("nSFT says yes to 40-60 % of POPE's questions", holds, numbers))
    if "random" in comparison.methods:
        floor = comparison.methods["random"].metrics
        before, after = base.get("chair_i"), floor.get("chair_i")
        error = math.hypot(base.get("chair_i_se") or 0.0, floor.get("chair_i_se") or 0.0)
        holds = before is not None and after is not None
        holds = holds and (before or 0.0) - (after or 0.0) <= max(0.1 * (before or 0.0), 2 * error)
        numbers = f"{percent(before)} to {percent(after)}"
        result.append(
            Verdict("Random selection instead of the judge does not help", holds, numbers)
        )
    if "ppo" in comparison.methods:
        curve = comparison.methods["ppo"].curve
        values = [p.explained_variance for p in curve if p.explained_variance is not None]
        last = values[-max(1, len(values) // 3) :]
        mean = sum(last) / len(last) if last else None
        numbers = "not measured" if mean is None else f"{mean:.2f}"
        claim = "The critic explains over 0.2 of the variance in the last third"
        result.append(Verdict(claim, mean is not None and mean > 0.2, numbers))
    return result


def _method_verdicts(
    label: str, base: dict[str, float | None], got: dict[str, float | None]
) -> list[Verdict]:
    before, after = base.get("chair_i"), got.get("chair_i")
    cut = None if before is None or after is None or before <= 0 else 1 - after / before
    had, kept = base.get("recall"), got.get("recall")
    # Rounded so that a loss of exactly 3 points is not refused for its last binary digit.
    lost = None if had is None or kept is None else round(had - kept, 9)
    said = got.get("mentions_per_object")
    return [
        Verdict(
            f"{label} lowers CHAIR_i by at least 50 %",
            cut is not None and cut >= 0.5,
            f"{percent(before)} to {percent(after)}" + ("" if cut is None else f" ({-cut:+.0%})"),
        ),
        Verdict(
            f"{label} loses at most 3 points of recall",
            lost is not None and lost <= 0.03,
            f"{percent(had)} to {percent(kept)}"
            + ("" if lost is None else f" ({0.0 - 100 * lost:+.1f} points)"),
        ),
        Verdict(
            f"{label} does not gain by writing less",
            said is not None and said >= 0.9,
            "not measured" if said is None else f"{said:.2f} mentions for each true object",
        ),
    ]


def percent(value: float | None) -> str:
    """`24.5 %`, or `not measured`."""
    return "not measured" if value is None else f"{100 * value:.1f} %"
