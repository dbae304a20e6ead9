"""Is a wrong yes/no answer a habit or a misperception? (arXiv 2403.05262, post-hoc calibration)

The answer's distribution without the image, p_cf, is what the model would say anyway. Dividing it
out gives p' ~ p / (p_cf + 1e-4). Errors that then vanish were bias; those that stay were not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

OFFSET = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class YesNo:
    """One question's probability mass of yes and no as the answer's first token."""

    label: Literal["yes", "no"]
    with_image: tuple[float, float]
    """p(yes), p(no); the rest of the vocabulary has what is missing to 1."""
    without_image: tuple[float, float]


def share_of_yes(mass: tuple[float, float]) -> float:
    """p(yes) / (p(yes) + p(no)).

    Raises:
        ValueError: neither has any mass.
    """
    yes, no = mass
    if not yes + no > 0:
        raise ValueError("neither yes nor no has any probability")
    return yes / (yes + no)


def calibrated(item: YesNo) -> float:
    """p'(yes) = a / (a + b), a = p(yes) / (p_cf(yes) + 1e-4), b the same of no; p and p_cf are
    normalised over yes and no first.

    Limiting cases: p = p_cf gives 1/2 (the image said nothing, up to the offset); an even p_cf
    gives p.
    """
    p, prior = share_of_yes(item.with_image), share_of_yes(item.without_image)
    yes, no = p / (prior + OFFSET), (1 - p) / (1 - prior + OFFSET)
    return yes / (yes + no)


def separation(scores: Sequence[float], labels: Sequence[str]) -> float:
    """AUC: chance that a question whose answer is yes has a higher score than one whose answer is
    no, ties counting half. It does not depend on where the line between yes and no is drawn, so a
    bias that is the same for all questions leaves it alone. NaN if one label is missing.
    """
    ranks = _ranks(scores)
    yes = [rank for rank, label in zip(ranks, labels, strict=True) if label == "yes"]
    no = len(labels) - len(yes)
    if not yes or not no:
        return math.nan
    return (sum(yes) - len(yes) * (len(yes) + 1) / 2) / (len(yes) * no)


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for position in range(start, end + 1):
            ranks[order[position]] = (start + end) / 2 + 1
        start = end + 1
    return ranks


def calibration_metrics(items: Sequence[YesNo]) -> dict[str, float]:
    """Before and after calibration: accuracy, yes-ratio and separation, all in 0..1.

    `prior_yes` mean p_cf(yes) of the model without an image. Of the errors before: `bias` the
    number that calibration mends, `perception` the number that stay; `new_errors` those it makes.
    An even score counts as yes.
    """
    labels = [item.label for item in items]
    scores = {
        "before": [share_of_yes(item.with_image) for item in items],
        "after": [calibrated(item) for item in items],
    }
    result: dict[str, float] = {"questions": float(len(items))}
    right: dict[str, list[bool]] = {}
    for when, values in scores.items():
        said = ["yes" if value >= 0.5 else "no" for value in values]
        right[when] = [word == label for word, label in zip(said, labels, strict=True)]
        result[f"{when}_accuracy"] = sum(right[when]) / len(items)
        result[f"{when}_yes_ratio"] = said.count("yes") / len(items)
        result[f"{when}_separation"] = separation(values, labels)
    result["prior_yes"] = sum(share_of_yes(item.without_image) for item in items) / len(items)
    pairs = list(zip(right["before"], right["after"], strict=True))
    result["bias"] = float(pairs.count((False, True)))
    result["perception"] = float(pairs.count((False, False)))
    result["new_errors"] = float(pairs.count((True, False)))
    return result


def verdict(metrics: dict[str, float]) -> str:
    """One line for a reader: what most of the errors are."""
    bias, perception = int(metrics["bias"]), int(metrics["perception"])
    errors, new = bias + perception, int(metrics["new_errors"])
    if not errors:
        return "no errors before calibration: nothing to explain"
    text = (
        f"of {errors} errors {bias} vanish with calibration (bias), {perception} stay (perception)"
    )
    text += f"; calibration makes {new} new ones"
    if bias - new > errors / 2:
        return f"mostly a bias: {text}"
    if bias > new:
        return f"partly a bias: {text}"
    return f"no bias that calibration mends: {text}"
