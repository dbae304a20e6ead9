"""AMBER's counts and rates (arXiv 2311.07397), as `inference.py` of `junyangwang0410/AMBER`.

All rates are in % rounded to one decimal, and every denominator starts at 0.001, so that nothing to
count gives 0. The positive class of the yes/no questions is No.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from operator import eq as equals

START = 0.001
EPSILON = 0.0001
"""In the denominator of F1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptionCounts:
    """Of one description."""

    nouns: int
    """Nouns that AMBER's vocabulary knows, `safe` ones included."""
    hallucinated: int
    truth: int
    covered: int
    """Of the true objects."""
    targets: int
    """Objects that people would expect here and that are not there."""
    fallen_for: int
    """Of the targets."""


def count_description(
    nouns: Sequence[str],
    truth: Sequence[str],
    hallu: Sequence[str],
    *,
    associations: Mapping[str, Sequence[str]],
    safe: Set[str],
    similar: Callable[[str, str], bool],
) -> DescriptionCounts:
    """Match the nouns of one description to its true objects and its hallucination targets.

    A noun counts if it is a key or a value of `associations`. A `safe` one is never a
    hallucination; one that equals a true object, or an associate of one, covers it; any other
    marks the target that it equals and the first target that it is `similar` to, and is a
    hallucination unless it is `similar` to a true object, which it then covers. Associates are
    tried before the objects themselves, and the first match counts.
    Limiting case: no nouns give nothing covered and nothing hallucinated.
    """
    vocabulary = set(associations).union(*associations.values())
    kept = [noun for noun in nouns if noun in vocabulary]
    true_names, target_names = _names(truth, associations), _names(hallu, associations)
    covered: set[int] = set()
    fallen_for: set[int] = set()
    hallucinated = 0
    for noun in kept:
        if noun in safe:
            continue
        equal = _first(true_names, noun, equals)
        if equal is not None:
            covered.add(equal)
            continue
        for same in (equals, similar):
            match = _first(target_names, noun, same)
            if match is not None:
                fallen_for.add(match)
        near = _first(true_names, noun, similar)
        if near is None:
            hallucinated += 1
        else:
            covered.add(near)
    return DescriptionCounts(
        nouns=len(kept),
        hallucinated=hallucinated,
        truth=len(truth),
        covered=len(covered),
        targets=len(hallu),
        fallen_for=len(fallen_for),
    )


def _names(
    objects: Sequence[str], associations: Mapping[str, Sequence[str]]
) -> list[tuple[str, int]]:
    """(name, index of its object): all associates, then the objects themselves."""
    associates = [(name, i) for i, word in enumerate(objects) for name in associations[word]]
    return associates + [(word, index) for index, word in enumerate(objects)]


def _first(
    names: Sequence[tuple[str, int]], noun: str, same: Callable[[str, str], bool]
) -> int | None:
    return next((index for name, index in names if same(noun, name)), None)


def description_rates(counts: Sequence[DescriptionCounts]) -> dict[str, float]:
    """CHAIR, Cover, Hal and Cog: sums over the corpus, then one division each.

    `chair` hallucinated / nouns; `cover` covered / true objects; `hal` descriptions with a
    hallucination / descriptions; `cog` targets fallen for / targets.
    """
    clean = sum(each.hallucinated == 0 for each in counts)
    nouns = sum(each.nouns for each in counts)
    return {
        "chair": _percent(sum(c.hallucinated for c in counts), START + nouns),
        "cover": _percent(sum(c.covered for c in counts), START + sum(c.truth for c in counts)),
        "hal": round(100 - clean / (START + len(counts)) * 100, 1),
        "cog": _percent(sum(c.fallen_for for c in counts), START + sum(c.targets for c in counts)),
    }


def yes_no(text: str) -> str:
    """`Yes` if the answer holds the letters `Yes` or `yes`, else `No`; so an empty answer is No.

    The script wants these two words exactly; this is how `yfzhang114/mmrlhf-eval` makes them.
    """
    return "Yes" if "Yes" in text or "yes" in text else "No"


def question_rates(
    items: Sequence[tuple[str, str]], *, epsilon: float = EPSILON, counters: int = 1
) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 of No, over (truth, `Yes` or `No`).

    Precision: of the answers No the right ones; recall: of the questions whose truth is no those
    answered No; F1 = 2 P R / (P + R + epsilon) from the rounded P and R. Denominators start at
    0.001 for each of the `counters` that the script sums: three for attributes.
    """
    start = START * counters
    hits = sum(said == "No" and truth == "no" for truth, said in items)
    right = sum(said.lower() == truth for truth, said in items)
    precision = _percent(hits, start + sum(said == "No" for _, said in items))
    recall = _percent(hits, start + sum(truth == "no" for truth, _ in items))
    p, r = precision / 100, recall / 100
    return {
        "accuracy": _percent(right, start + len(items)),
        "precision": precision,
        "recall": recall,
        "f1": round(2 * p * r / (p + r + epsilon) * 100, 1),
    }


def _percent(part: float, whole: float) -> float:
    return round(part / whole * 100, 1)
