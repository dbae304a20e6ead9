"""From what was timed to the figures that are shown: pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

RAW = ("generate", "judge", "logprobs", "train", "sync")
"""Phases with a raw counterpart; all other phases are tax."""


ROUNDING = 1e-6
"""Seconds that sums of floats may be out by."""


def phase_seconds(
    spans: Sequence[tuple[str, float, float]], aside: Mapping[str, float]
) -> dict[str, float]:
    """Seconds by phase, less what was done within it that is not the round's.

    Args:
        spans: name, start and end of each; a phase may come again.
        aside: phase -> seconds to leave out; one that did not come had nothing in it.
    """
    seconds: dict[str, float] = {}
    for name, start, end in spans:
        seconds[name] = seconds.get(name, 0.0) + end - start
    return {name: spent - aside.get(name, 0.0) for name, spent in seconds.items()}


def refuse_negative(one: Mapping[str, Any]) -> None:
    """Time that is left out of a round and not of its phase, or the other way round, shows as less
    than nothing.

    Raises:
        ValueError: a phase, or what is between phases, is negative.
    """
    between = one["seconds"] - sum(one["phases"].values())
    for name, spent in {**one["phases"], "between phases": between}.items():
        if spent < -ROUNDING:
            raise ValueError(f"{name} took {spent:.3f} s: the raw calls' time is counted wrongly")


def summary(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds.

    Raises:
        ValueError: a phase of a round took less than nothing.
    """
    for one in rounds:
        refuse_negative(one)
    taxes, cpu_taxes, throughputs, syncs = [], [], [], []
    for one in rounds:
        raw = one["raw"]
        taxes.append(one["seconds"] / sum(raw[name]["seconds"] for name in RAW if name in raw))
        cpu_taxes.append(
            one["cpu_seconds"] / sum(raw[name]["cpu_seconds"] for name in RAW if name in raw)
        )
        product = one["tokens"] / one["phases"]["generate"]
        throughputs.append(product / (raw["bare_loop"]["tokens"] / raw["bare_loop"]["seconds"]))
        syncs.append(
            {
                "seconds": one["phases"]["sync"],
                "bytes": raw["copy_in_memory"]["bytes"],
                "over_copy_in_memory": one["phases"]["sync"] / raw["copy_in_memory"]["seconds"],
                "over_copy_between_processes": one["phases"]["sync"]
                / raw["copy_between_processes"]["seconds"],
                "over_reload": one["phases"]["sync"] / raw["sync"]["seconds"],
            }
        )
    names = dict.fromkeys(name for one in rounds for name in one["phases"])
    return {
        "tax": median(taxes),
        "tax_range": [min(taxes), max(taxes)],
        "cpu_tax": median(cpu_taxes),
        "rollout_throughput_ratio": median(throughputs),
        "sync": {key: median(sync[key] for sync in syncs) for key in syncs[0]},
        "round_seconds": median(one["seconds"] for one in rounds),
        "phase_seconds": {n: median(one["phases"].get(n, 0.0) for one in rounds) for n in names},
        "raw_seconds": {
            name: median(one["raw"][name]["seconds"] for one in rounds) for name in rounds[0]["raw"]
        },
        "outside_phases_seconds": median(
            one["seconds"] - sum(one["phases"].values()) for one in rounds
        ),
        "rounds": list(rounds),
    }


def growth(points: Sequence[dict[str, float]], key: str) -> float:
    """Slope of log cost over log size from the middle point to the largest, where fixed costs weigh
    least. Limiting cases: cost in proportion to size is 1, a constant 0.
    """
    a, b = points[(len(points) - 1) // 2], points[-1]
    return math.log(b[key] / a[key]) / math.log(b["size"] / a["size"])
