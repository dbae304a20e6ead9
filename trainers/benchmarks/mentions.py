"""Hallucinated object mentions of captions: counts that CHAIR and Object HalBench divide."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from trainers.evaluation import ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionCounts:
    """Of one caption."""

    mentions: int
    hallucinated: int
    """Mentions of a class that is not in the image; a class that is there may be named often."""
    found: int
    """Classes of the image that are named."""
    present: int
    """Classes of the image."""


def count(classes: Sequence[str], truth: Set[str]) -> CaptionCounts:
    """Counts of the classes named in one caption. Limiting case: an empty caption has 0 mentions,
    0 hallucinated.
    """
    return CaptionCounts(
        mentions=len(classes),
        hallucinated=sum(name not in truth for name in classes),
        found=len(truth & set(classes)),
        present=len(truth),
    )


def rates(counts: Sequence[CaptionCounts]) -> dict[str, float]:
    """Corpus-level rates in 0..1, standard errors over captions under `_se`.

    `chair_i` hallucinated mentions / mentions; `chair_s` captions with one / captions;
    `chair_s_refine` the same / captions that mention any object; `recall` classes named / classes
    in the images. NaN where the denominator is 0. CHAIR, arXiv 1809.02156, equations 1 and 2.
    """
    wrong = [float(each.hallucinated) for each in counts]
    flagged = [float(each.hallucinated > 0) for each in counts]
    pairs = {
        "chair_i": ratio(wrong, [float(each.mentions) for each in counts]),
        "chair_s": ratio(flagged, [1.0] * len(counts)),
        "chair_s_refine": ratio(flagged, [float(each.mentions > 0) for each in counts]),
        "recall": ratio([float(c.found) for c in counts], [float(c.present) for c in counts]),
        "mentions": ratio([float(each.mentions) for each in counts], [1.0] * len(counts)),
    }
    result: dict[str, float] = {}
    for name, (value, error) in pairs.items():
        result[name], result[f"{name}_se"] = value, error
    return result
