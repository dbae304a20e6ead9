"""Exact evaluation against ground truth: CHAIR, POPE and question accuracy in the drawn world.

No judge and no model takes part: an answer is parsed into mentions and compared with what was
drawn. All rates are fractions in 0..1. A rate whose denominator is 0 is NaN (an answer that
mentions nothing has no hallucination rate; it is not a good one), which `compare.json` shows as
null. CHAIR falls when captions shrink, so it is always returned together with recall and length.

Sources: CHAIR, arXiv 1809.02156 (`LisaAnne/Hallucination`); POPE, arXiv 2305.10355
(`RUCAIBox/POPE`); ratio estimator, Cochran, Sampling Techniques, section 2.11.
"""

from __future__ import annotations

import math
import string
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from trainers.data.scenes import Mention, parse_mentions

POPE_SPLITS = ("random", "popular", "adversarial")

Parser = Callable[[str], Sequence[Mention]]
Truth = Mapping[str, Any]
TruthObject = tuple[str, str, str]
"""(color, shape, position)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """How the mentions of one answer relate to the objects of one scene."""

    matched: tuple[tuple[Mention, TruthObject], ...]
    """Correct mentions, each with the object that it names; no object is named twice."""
    hallucinated: tuple[Mention, ...]
    """Mentions without an object: wrong colour, wrong shape, or one repeat too many."""
    missing: tuple[TruthObject, ...]
    """Objects that no mention names."""


def match_mentions(truth: Truth, text: str, parse: Parser = parse_mentions) -> Matching:
    """Match the mentions in `text` to the objects of `truth` as a multiset of (colour, shape).

    Pairs that agree on the position too are matched first, then the rest in reading order. The
    order decides which of two equal mentions is called the extra one, never how many there are.
    Limiting cases: no text gives no mention and everything missing; a perfect caption gives
    neither hallucinated nor missing.
    """
    mentions = list(parse(text))
    free: list[TruthObject] = [cast(TruthObject, tuple(each)) for each in truth["objects"]]
    partner: dict[int, TruthObject] = {}
    for with_position in (True, False):
        for index, mention in enumerate(mentions):
            if index in partner:
                continue
            for candidate in free:
                same = (mention.color, mention.shape) == candidate[:2]
                if same and (not with_position or mention.position == candidate[2]):
                    partner[index] = candidate
                    free.remove(candidate)
                    break
    return Matching(
        matched=tuple((mentions[index], partner[index]) for index in sorted(partner)),
        hallucinated=tuple(m for index, m in enumerate(mentions) if index not in partner),
        missing=tuple(free),
    )


def hallucinated_spans(
    truth: Truth, text: str, parse: Parser = parse_mentions
) -> list[tuple[int, int]]:
    """Character spans [start, end) of the hallucinated mentions in `text`, in reading order."""
    return [(m.start, m.end) for m in match_mentions(truth, text, parse).hallucinated]


def missing_objects(truth: Truth, text: str, parse: Parser = parse_mentions) -> list[TruthObject]:
    """True objects that `text` does not name."""
    return list(match_mentions(truth, text, parse).missing)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float]:
    """Corpus-level ratio R = sum(y) / sum(x) over n scenes, and its standard error.

    se = sqrt( n / (n - 1) * sum((y_i - R x_i)^2) ) / sum(x): scenes are the sampling unit, because
    the mentions of one caption are not independent. Limiting case: all x_i = 1 gives the mean and
    its usual standard error. NaN for an empty denominator; the error is NaN for fewer than two
    scenes.
    """
    n, total = len(denominators), float(sum(denominators))
    if total == 0.0:
        return math.nan, math.nan
    value = float(sum(numerators)) / total
    if n < 2:
        return value, math.nan
    residual = sum((y - value * x) ** 2 for y, x in zip(numerators, denominators, strict=True))
    return value, math.sqrt(n / (n - 1) * residual) / total


def caption_metrics(
    items: Sequence[tuple[Truth, str, int]], parse: Parser = parse_mentions
) -> dict[str, float]:
    """CHAIR of captions; `items` holds (truth, text, number of response tokens) for each scene.

    `chair_i`   hallucinated mentions / mentions, summed over the corpus
    `chair_s`   captions with a hallucinated mention / captions
    `recall`    objects named / objects, summed over the corpus
    `mentions_per_object`  mentions / objects; below 1 the captions say less than there is
    `position_accuracy`    right positions / matched mentions that state a position
    `response_length`      mean tokens of a response
    `scenes`    number of captions
    Each rate has its standard error over scenes beside it under `<name>_se`.
    """
    mentions: list[float] = []
    wrong: list[float] = []
    named: list[float] = []
    objects: list[float] = []
    placed: list[float] = []
    right: list[float] = []
    lengths: list[float] = []
    for truth, text, num_tokens in items:
        match = match_mentions(truth, text, parse)
        stated = [(m, o) for m, o in match.matched if m.position is not None]
        mentions.append(len(match.matched) + len(match.hallucinated))
        wrong.append(len(match.hallucinated))
        named.append(len(match.matched))
        objects.append(len(match.matched) + len(match.missing))
        placed.append(len(stated))
        right.append(sum(m.position == o[2] for m, o in stated))
        lengths.append(num_tokens)
    ones = [1.0] * len(items)
    rates = {
        "chair_i": ratio(wrong, mentions),
        "chair_s": ratio([float(count > 0) for count in wrong], ones),
        "recall": ratio(named, objects),
        "mentions_per_object": ratio(mentions, objects),
        "position_accuracy": ratio(right, placed),
        "response_length": ratio(lengths, ones),
    }
    return {**_with_errors(rates), "scenes": float(len(items))}


def pope_answer(text: str) -> str:
    """`yes` or `no`, by POPE's rule: `no` if the first sentence has the word no or not, else `yes`.

    The original takes the text before the first full stop, deletes commas, splits on spaces and
    looks for `No`, `no`, `not`; so an empty answer counts as yes, and `NO` or `no!` do too. Here
    case and punctuation around a word do not matter; everything else is the original.
    """
    sentence = text.split(".")[0].replace(",", "")
    words = {word.strip(string.punctuation).lower() for word in sentence.split()}
    return "no" if words & {"no", "not"} else "yes"


def pope_metrics(items: Sequence[tuple[str, str, str]]) -> dict[str, float]:
    """POPE over `items` of (split, label `yes` or `no`, answer text); positive class = yes.

    For each split `pope_<split>_accuracy`, `_precision`, `_recall`, `_f1`, `_yes_ratio`; the same
    without the split's name is the mean over the splits that occur (papers mostly quote the mean
    F1), with its standard error under `_se`. F1 = 2 TP / (2 TP + FP + FN). The errors treat answers
    as independent; splits share their present objects, so the true errors are somewhat larger.
    `pope_unclear` is the share of answers with neither yes nor no, which the rule counts as yes.
    """
    by_split: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    unclear = 0
    for split, label, text in items:
        if label not in ("yes", "no"):
            raise ValueError(f"POPE label must be 'yes' or 'no', got {label!r}")
        said_yes = pope_answer(text) == "yes"
        unclear += said_yes and "yes" not in plain_words(text)
        by_split[split].append((label == "yes", said_yes))
    order = [s for s in POPE_SPLITS if s in by_split] + sorted(set(by_split) - set(POPE_SPLITS))
    parts = {split: binary_metrics(by_split[split]) for split in order}
    result: dict[str, float] = {}
    for split, part in parts.items():
        result |= {f"pope_{split}_{name}": value for name, (value, _) in part.items()}
    for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        values = [part[name][0] for part in parts.values()]
        errors = [part[name][1] for part in parts.values()]
        result[f"pope_{name}"] = sum(values) / len(parts) if parts else math.nan
        result[f"pope_{name}_se"] = math.hypot(*errors) / len(parts) if parts else math.nan
    result["pope_unclear"] = unclear / len(items) if items else math.nan
    return result


def question_accuracy(items: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Share of answers that begin with the expected words; `items` holds (expected, answer text).

    Case and punctuation around words do not matter, and what follows the expected words does not
    either: `two` is right in `Two .` and in `two red circles`. An empty answer is wrong.
    """
    hits: list[float] = []
    for expected, text in items:
        want, got = plain_words(expected), plain_words(text)
        hits.append(float(bool(want) and got[: len(want)] == want))
    return _with_errors({"question_accuracy": ratio(hits, [1.0] * len(hits))})


def binary_metrics(answers: Sequence[tuple[bool, bool]]) -> dict[str, tuple[float, float]]:
    """Value and standard error of each POPE metric of (label is yes, answer is yes) pairs."""
    ones = [1.0] * len(answers)
    label = [float(truth) for truth, _ in answers]
    said = [float(yes) for _, yes in answers]
    hit = [float(truth and yes) for truth, yes in answers]
    return {
        "accuracy": ratio([float(truth == yes) for truth, yes in answers], ones),
        "precision": ratio(hit, said),
        "recall": ratio(hit, label),
        # 2 TP + FP + FN counts each answer once for its label and once for itself.
        "f1": ratio([2 * h for h in hit], [y + s for y, s in zip(label, said, strict=True)]),
        "yes_ratio": ratio(said, ones),
    }


def _with_errors(rates: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    result: dict[str, float] = {}
    for name, (value, error) in rates.items():
        result[name], result[f"{name}_se"] = value, error
    return result


def plain_words(text: str) -> list[str]:
    """The words of `text` in lower case, punctuation around them removed."""
    stripped = (word.strip(string.punctuation).lower() for word in text.split())
    return [word for word in stripped if word]
