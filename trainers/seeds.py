"""The arms of several comparisons in one table: what repeats over seeds, and what does not.

An *ordering* is what a paper claims of two of its arms, as one metric; it holds in a seed or does
not, and is never averaged first: the arms of one seed saw the same prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from trainers.comparison import Comparison, MethodResult
from trainers.config import Settings
from trainers.data.errors import UserError

Metric = Literal["chair_i", "chair_s", "recall", "pope_accuracy"]
LOWER_IS_BETTER = {"chair_i", "chair_s"}
BASE = "base"
"""Name of the model that all arms start from, among the arms of an ordering."""
NOT_COMPARED = {"seed", "name", "output", "arms"}
"""Settings in which comparisons of one table may differ; arms are compared one by one."""


class Ordering(Settings):
    """One claim: `better` is ahead of `worse` in `metric`."""

    better: str
    worse: str
    metric: Metric = "chair_i"
    claim: str
    """In words, as the paper has it."""
    source: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """An ordering, and what each seed says: whether it held, None where an arm is missing."""

    ordering: Ordering
    held: Mapping[int, bool | None]
    numbers: str
    """The mean of the metric for both arms, over the seeds that have both."""


@dataclass(frozen=True, slots=True)
class Seeds:
    """Results by arm and seed, in the order in which arms were first run."""

    arms: Mapping[str, Mapping[int, MethodResult]]
    bases: Mapping[int, Comparison]
    seeds: tuple[int, ...]


def gather(comparisons: Sequence[Comparison]) -> Seeds:
    """Sort the arms of `comparisons` by seed.

    Raises:
        UserError: an arm is there twice for a seed, two seeds ran it under different settings, or
            the base's figures of one seed differ; names arm, seed and key.
    """
    arms: dict[str, dict[int, MethodResult]] = {}
    settings: dict[str, dict[str, Any]] = {}
    bases: dict[int, Comparison] = {}
    for comparison in comparisons:
        seed = comparison.seed
        known = bases.setdefault(seed, comparison)
        if known.base != comparison.base:
            raise UserError(f"seed {seed}: the bases differ; these are not one comparison's runs")
        shared = {k: v for k, v in comparison.config.items() if k not in NOT_COMPARED}
        for name, result in comparison.methods.items():
            if seed in arms.setdefault(name, {}):
                raise UserError(f"arm {name}: seed {seed} is there twice; leave out one of them")
            own = {"shared": shared, "arm": comparison.config.get("arms", {}).get(name)}
            if settings.setdefault(name, own) != own:
                first = _first(settings[name], own)
                raise UserError(f"arm {name}: seed {seed} ran under other settings ({first})")
            arms[name][seed] = result
    if not arms:
        raise UserError("no arms in these runs; give folders of `quartet compare`")
    return Seeds(arms, bases, tuple(sorted(bases)))


def _first(known: Any, other: Any, path: str = "") -> str:
    """The first key in which two nested settings differ."""
    if not isinstance(known, dict) or not isinstance(other, dict):
        return f"{path}: {known!r} and {other!r}"
    for key in dict.fromkeys([*known, *other]):
        if known.get(key) != other.get(key):
            return _first(known.get(key), other.get(key), f"{path}.{key}" if path else key)
    return path


def decide(seeds: Seeds, orderings: Sequence[Ordering]) -> list[Outcome]:
    """Whether each ordering held, seed by seed; an arm that stopped early has no part.

    Raises:
        UserError: an arm of an ordering is in none of the runs.
    """
    outcomes = []
    for ordering in orderings:
        held: dict[int, bool | None] = {}
        pairs = []
        for seed in seeds.seeds:
            ahead = _metric(seeds, ordering.better, seed, ordering.metric)
            behind = _metric(seeds, ordering.worse, seed, ordering.metric)
            if ahead is None or behind is None:
                held[seed] = None
                continue
            pairs.append((ahead, behind))
            lower = ordering.metric in LOWER_IS_BETTER
            held[seed] = ahead < behind if lower else ahead > behind
        numbers = " : ".join(f"{100 * fmean(values):.1f}" for values in zip(*pairs, strict=True))
        outcomes.append(Outcome(ordering, held, numbers or "not measured"))
    return outcomes


def _metric(seeds: Seeds, name: str, seed: int, metric: str) -> float | None:
    if name == BASE:
        return seeds.bases[seed].base.metrics.get(metric)
    if name not in seeds.arms:
        raise UserError(f"orderings: arm {name} is in none of the runs")
    result = seeds.arms[name].get(seed)
    return None if result is None or result.failure else result.metrics.get(metric)


def markdown(seeds: Seeds, outcomes: Sequence[Outcome]) -> str:
    """Both tables as Markdown: arms with mean and range over seeds, then the orderings.

    Copies are those in training and in the loop; MB what the former hold between steps, peak MB the
    device's bytes of all processes in the training phase.
    """
    rates = {
        "CHAIR_i": "chair_i",
        "recall": "recall",
        "POPE acc.": "pope_accuracy",
        "POPE yes": "pope_yes_ratio",
    }
    head = ["arm", "method", "judge", "copies", *rates, "MB", "peak MB", "core-s", "seeds"]
    lines = [_row(head), _row(["---"] * 4 + ["---:"] * (len(head) - 4))]
    start = [seeds.bases[seed].base.metrics for seed in seeds.seeds]
    cells = [_rate([metrics.get(key) for metrics in start]) for key in rates.values()]
    lines.append(_row([f"*{BASE}*", "", "", "", *cells, "", "", "", str(len(start))]))
    for name, by_seed in seeds.arms.items():
        done = [result for result in by_seed.values() if result.failure is None]
        stopped = len(by_seed) - len(done)
        count = f"{len(done)}" + (f", {stopped} stopped" if stopped else "")
        any_one = next(iter(by_seed.values()))
        lines.append(
            _row(
                [
                    name,
                    any_one.method,
                    any_one.judge or "none",
                    f"{len(any_one.copies_train)} / {len(any_one.copies_loop)}",
                    *(_rate([r.metrics.get(key) for r in done]) for key in rates.values()),
                    _number([r.training_bytes() for r in done], 1e-6, digits=1),
                    _number([r.memory.device_bytes_by_phase.get("train") for r in done], 1e-6),
                    _number([sum(r.core_seconds.values()) or None for r in done], 1.0),
                    count,
                ]
            )
        )
    if outcomes:
        lines += ["", _row(["claim", "source", "measured", "metric", "held"])]
        lines.append(_row(["---"] * 5))
        lines += [_row(_outcome(outcome)) for outcome in outcomes]
    return "\n".join(lines) + "\n"


def _outcome(outcome: Outcome) -> list[str]:
    known = [held for held in outcome.held.values() if held is not None]
    ordering = outcome.ordering
    return [
        f"{ordering.claim} (`{ordering.better}` over `{ordering.worse}`)",
        ordering.source,
        outcome.numbers,
        ordering.metric,
        f"{sum(known)} of {len(known)}",
    ]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rate(values: Sequence[float | None]) -> str:
    return _spread(values, lambda value: f"{100 * value:.1f}")


def _number(values: Sequence[float | None], factor: float, digits: int = 0) -> str:
    known = [value * factor for value in values if value is not None]
    return f"{fmean(known):.{digits}f}" if known else "-"


def _spread(values: Sequence[float | None], show: Callable[[float], str]) -> str:
    """Mean, and the range where there is more than one value."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if len(known) == 1:
        return show(known[0])
    return f"{show(fmean(known))} ({show(min(known))} to {show(max(known))})"
