"""Preference pairs from judged rollouts, by the rules of RLAIF-V, MM-RLHF and mllm-dpo."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal, assert_never

from trainers.data.records import PreferencePair, ScoredRollout

Strategy = Literal["best_worst", "all", "all_ranks", "best_random"]
Candidate = tuple[ScoredRollout, ScoredRollout]
"""(chosen, rejected)"""

LENGTH_THRESHOLDS = tuple(step / 50 for step in range(50))
"""RLAIF-V's grid: 0, 0.02, ..., 0.98."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinedPairs:
    """The pairs of a round, and how they came about (names start with `pairs/`)."""

    pairs: tuple[PreferencePair, ...]
    stats: dict[str, float]
    num_answers: int
    unscored_combinations: int
    """Two-combinations of answers to one prompt, one of which at least has no score."""

    @property
    def why_none(self) -> str:
        """For a round without pairs: what most of its two-combinations were dropped for; of equal
        numbers the first of `WHY_DROPPED`.

        A cap, a duplicate or a length drops pairs of which another stays, so never all.
        """
        dropped = {key: self.stats[f"pairs/{key}"] for key in WHY_DROPPED if key != "failures"}
        numbers = {"failures": self.unscored_combinations, **dropped}
        if not any(numbers.values()):
            return "no prompt has two answers; raise rollout.num_rollouts_per_prompt"
        most = max(WHY_DROPPED, key=lambda key: numbers[key])
        failed = f"{self.stats['pairs/failures']:.0f} of {self.num_answers}"
        return WHY_DROPPED[most].format(failed=failed)


def mine_pairs(
    scored: Sequence[ScoredRollout],
    *,
    margin: float,
    max_pairs_per_prompt: int,
    strategy: Strategy,
    length_balance: bool,
    rng: random.Random,
    min_share_kept: float = 0.5,
) -> MinedPairs:
    """Pair the responses to each sample whose scores differ by at least `margin`.

    1. Rollouts are grouped by `sample_id`; those without a score (judge failures) are left out.
    2. Candidates are all two-combinations with a score difference of at least `margin` and above 0,
       the higher one chosen. Never: equal texts, a chosen response that was cut off
       (`finish_reason` "length"), the same two texts twice (the wider margin stays).
    3. Per sample at most `max_pairs_per_prompt`: `all` draws them at random (RLAIF-V, which keeps
       2); `best_worst` takes the widest margins, each rollout at most once, so that a cap of 1 is
       best against worst. Equal margins are ordered by chance. Two strategies have a number of
       their own instead: `all_ranks` takes every candidate (MM-RLHF, with a margin of 0: all of
       different rank), `best_random` the best response against one drawn from those at least
       `margin` below it (mllm-dpo, whose margin is 2 of 12 points).
    4. `length_balance`: a threshold r on (words of rejected - words of chosen) / words of rejected;
       pairs above it are dropped. r is the value of `LENGTH_THRESHOLDS` that makes the mean lengths
       of chosen and rejected most equal. A judge that counts errors favours short answers.

    `min_share_kept` (ours; 0 is RLAIF-V's rule) bounds step 4: thresholds that keep a smaller share
    of the pairs are not tried, since in a small round one perfectly balanced pair would win.
    Sources: RLAIF-V (arXiv 2405.17220), `get_preference_pairs.py` and
    `get_pairs_filter_shorten.py`; MM-RLHF (arXiv 2502.10391); mllm-dpo (arXiv 2402.10884).
    """
    _check(margin, max_pairs_per_prompt)
    stats = {f"pairs/{name}": 0.0 for name in _COUNTS}
    groups = _group(scored, stats)
    taken: list[Candidate] = []
    for group in groups.values():
        candidates = _candidates(group, margin, stats)
        rng.shuffle(candidates)
        chosen = _choose(candidates, strategy, max_pairs_per_prompt)
        stats["pairs/dropped_cap"] += len(candidates) - len(chosen)
        taken += chosen
    threshold = 1.0
    if length_balance and taken:
        threshold, kept = balance_lengths(taken, min_share_kept=min_share_kept)
        stats["pairs/dropped_length"] = float(len(taken) - len(kept))
        taken = kept
    pairs = tuple(
        PreferencePair(sample_id=c.rollout.sample_id, chosen=c, rejected=r, margin=_margin((c, r)))
        for c, r in taken
    )
    stats["pairs/length_threshold"] = threshold
    answers = Counter(item.rollout.sample_id for item in scored)
    return MinedPairs(
        pairs=pairs,
        stats=stats | _summary(pairs, len(groups)),
        num_answers=len(scored),
        unscored_combinations=sum(
            comb(number, 2) - comb(len(groups[sample]), 2) for sample, number in answers.items()
        ),
    )


def balance_lengths(
    candidates: Sequence[Candidate], *, min_share_kept: float
) -> tuple[float, list[Candidate]]:
    """RLAIF-V's threshold r and the candidates that it keeps (see `mine_pairs`, step 4).

    Minimises |mean words of chosen - mean words of rejected| / mean words of rejected; among equal
    minima the largest r, which keeps most. Falls back to all when no threshold keeps enough.
    """
    best: tuple[float, float, list[Candidate]] = (math.inf, 1.0, list(candidates))
    for threshold in reversed(LENGTH_THRESHOLDS):
        kept = [pair for pair in candidates if _shortening(pair) <= threshold]
        if not kept or len(kept) < min_share_kept * len(candidates):
            continue
        rejected = sum(_words(pair[1]) for pair in kept)
        difference = abs(sum(_words(pair[0]) for pair in kept) - rejected) / max(rejected, 1)
        if difference < best[0]:
            best = (difference, threshold, kept)
    return best[1], best[2]


_COUNTS = (
    "failures",
    "candidates",
    "dropped_margin",
    "dropped_identical",
    "dropped_truncated",
    "dropped_duplicate",
    "dropped_cap",
    "dropped_length",
)


WHY_DROPPED = {
    "failures": "the judge failed on {failed} answers",
    "dropped_identical": "all responses to a prompt are the same text; raise rollout.temperature",
    "dropped_margin": "all scores of a prompt are within method.pairs.margin; a judge that gives "
    "equal scores cannot teach",
    "dropped_truncated": "the better responses were all cut off; raise rollout.max_tokens",
}
"""Count -> what the user is told; what comes first is to be mended first."""


def _check(margin: float, max_pairs_per_prompt: int) -> None:
    if margin < 0:
        raise ValueError(f"margin must be at least 0, got {margin}")
    if max_pairs_per_prompt < 1:
        raise ValueError(f"max_pairs_per_prompt must be at least 1, got {max_pairs_per_prompt}")


def _group(
    scored: Sequence[ScoredRollout], stats: dict[str, float]
) -> dict[str, list[ScoredRollout]]:
    """Rollouts with a score, by sample, in order of first appearance. Samples may become empty."""
    groups: dict[str, list[ScoredRollout]] = {}
    for item in scored:
        group = groups.setdefault(item.rollout.sample_id, [])
        if item.score is None:
            stats["pairs/failures"] += 1
        elif not math.isfinite(item.score):
            raise ValueError(f"rollout {item.rollout.id}: score is {item.score}, not a number")
        else:
            group.append(item)
    return groups


def _candidates(
    group: Sequence[ScoredRollout], margin: float, stats: dict[str, float]
) -> list[Candidate]:
    """All pairs of one sample that may be used, counting why the others may not."""
    found: dict[frozenset[str], Candidate] = {}
    for first, second in combinations(group, 2):
        pair = (first, second) if _score(first) >= _score(second) else (second, first)
        texts = frozenset((_text(first), _text(second)))
        if len(texts) == 1:
            stats["pairs/dropped_identical"] += 1
        elif _margin(pair) < margin or _margin(pair) <= 0:
            stats["pairs/dropped_margin"] += 1
        elif pair[0].rollout.finish_reason == "length":
            stats["pairs/dropped_truncated"] += 1
        elif texts in found:
            stats["pairs/dropped_duplicate"] += 1
            found[texts] = max(found[texts], pair, key=_margin)
        else:
            found[texts] = pair
    stats["pairs/candidates"] += len(found)
    return list(found.values())


def most_pairs(num_answers: int, strategy: Strategy, max_pairs_per_prompt: int) -> int:
    """Pairs that one prompt can have at most: 4 answers have 6 two-combinations, and 2 pairs in
    which each is used once.
    """
    every = num_answers * (num_answers - 1) // 2
    match strategy:
        case "all_ranks":
            return every
        case "best_random":
            return min(1, every)
        case "best_worst":
            return min(max_pairs_per_prompt, num_answers // 2)
        case "all":
            return min(max_pairs_per_prompt, every)
        case _:
            assert_never(strategy)


def _choose(candidates: list[Candidate], strategy: Strategy, limit: int) -> list[Candidate]:
    """One sample's pairs, from its candidates in random order."""
    match strategy:
        case "all":
            return candidates[:limit]
        case "all_ranks":
            return candidates
        case "best_worst":
            return _disjoint(sorted(candidates, key=_margin, reverse=True), limit)
        case "best_random":
            # The order was left to chance, so the first of the best one's pairs is a draw.
            best = max(candidates, key=lambda pair: _score(pair[0]), default=None)
            return [] if best is None else [best]
        case _:
            assert_never(strategy)


def _disjoint(candidates: Sequence[Candidate], limit: int) -> list[Candidate]:
    """The first `limit` candidates that have no rollout in common."""
    taken: list[Candidate] = []
    used: set[str] = set()
    for pair in candidates:
        ids = {item.rollout.id for item in pair}
        if len(taken) < limit and not ids & used:
            taken.append(pair)
            used |= ids
    return taken


def _summary(pairs: Sequence[PreferencePair], num_prompts: int) -> dict[str, float]:
    chosen = [_words(pair.chosen) for pair in pairs]
    rejected = [_words(pair.rejected) for pair in pairs]
    count = max(len(pairs), 1)
    return {
        "pairs/num": float(len(pairs)),
        "pairs/prompts": float(num_prompts),
        "pairs/share_of_prompts": len({pair.sample_id for pair in pairs}) / max(num_prompts, 1),
        "pairs/length_chosen": sum(chosen) / count,
        "pairs/length_rejected": sum(rejected) / count,
        "pairs/length_difference": (sum(chosen) - sum(rejected)) / count,
        "pairs/margin_mean": sum(pair.margin for pair in pairs) / count,
    }


def _shortening(pair: Candidate) -> float:
    """By which share of the rejected response's words the chosen one is shorter."""
    rejected = _words(pair[1])
    return (rejected - _words(pair[0])) / rejected if rejected else 0.0


def _margin(pair: Candidate) -> float:
    return _score(pair[0]) - _score(pair[1])


def _score(item: ScoredRollout) -> float:
    assert item.score is not None
    return item.score


def _text(item: ScoredRollout) -> str:
    return item.rollout.text.strip()


def _words(item: ScoredRollout) -> int:
    return len(item.rollout.text.split())
