"""Sections of docs/performance.md on a round: tax, overlap, growth. JSON in, lines of Markdown out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.figures import RAW

LINEAR = 1.1
"""A slope above this is more than linear."""


def source(data: Mapping[str, Any]) -> str:
    """Where figures come from: command, device, versions."""
    versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    return f"{data['kind'].capitalize()}: `{data['command']}`; {data['device']}; {versions}."


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def tax(data: Mapping[str, Any]) -> list[str]:
    """Orchestration tax, and the profile of a round."""
    methods = data["methods"]
    rows = []
    for name, found in methods.items():
        low, high = found["tax_range"]
        sync = found["sync"]
        rows.append(
            [
                name,
                f"{found['tax']:.2f} ({low:.2f} to {high:.2f})",
                f"{found['cpu_tax']:.2f}",
                f"{found['rollout_throughput_ratio']:.2f}",
                f"{sync['seconds']:.2f} s, {sync['bytes'] / 1e6:.1f} MB",
                f"{sync['over_copy_between_processes']:.1f}",
                f"{sync['over_copy_in_memory']:.0f}",
            ]
        )
    phases = list(dict.fromkeys(n for found in methods.values() for n in found["phase_seconds"]))
    profile = []
    for phase in [*phases, "between phases"]:
        cells: list[object] = [phase]
        for found in methods.values():
            spent = found["phase_seconds"].get(phase, 0.0)
            if phase == "between phases":
                spent = found["outside_phases_seconds"]
            raw = found["raw_seconds"].get(phase) if phase in RAW else None
            cells.append(f"{spent:.2f}" + (f" ({raw:.2f})" if raw is not None else ""))
        profile.append(cells)
    return [
        "## What orchestration costs",
        "",
        f"{data['definition']}",
        "",
        (
            f"{data['rollouts_per_round']} rollouts a round, medians of {data['measured_rounds']} rounds, "
            "range in brackets. `CPU` is the same ratio in CPU seconds of all processes and threads, in "
            "which waiting for a busy core does not count. Targets: tax 1.05, throughput 0.95, sync 2."
        ),
        "",
        *table(
            [
                "method",
                "tax",
                "CPU",
                "throughput / bare `LLM.generate`",
                "sync",
                "/ the bytes copied to another process",
                "/ the bytes copied in memory",
            ],
            rows,
        ),
        "",
        "### Where a round's time goes",
        "",
        "Seconds by phase; in brackets the raw engine calls of that phase.",
        "",
        *table(["phase", *methods], profile),
        "",
        source(data),
    ]


def overlap(data: Mapping[str, Any]) -> list[str]:
    """Overlap on against off."""
    slices, early, alike = data["slices"], data["off_policy"], data["judged_alike"]
    return [
        "## Overlap",
        "",
        (
            f"{data['rollouts_per_round']} rollouts a round, one thread an actor; seconds off / seconds on, "
            "medians of alternating runs: above 1 it pays."
        ),
        "",
        *table(
            ["setting", "off / on", "what is timed"],
            [
                [
                    f"`overlap.judge_slices: {slices['slices']}`",
                    f"{slices['ratio']:.2f}",
                    "answering and judging a round",
                ],
                ["`overlap.off_policy_steps: 1`", f"{early['ratio']:.2f}", "a round of PPO"],
            ],
        ),
        "",
        (
            f"Of {alike['answers']} answers judged in one call and in slices, {alike['equal_critiques']} got "
            f"the same critique; scores differ by at most {alike['largest_score_gap']:.1e}."
        ),
        "",
        source(data),
    ]


def growth(data: Mapping[str, Any]) -> list[str]:
    """How cost grows."""
    lines = [
        "## How cost grows",
        "",
        (
            "Seconds at each point, and the slope of log seconds over log size between the last two points "
            "(1: linear; CPU seconds in brackets)."
        ),
    ]
    for name, curve in data["curves"].items():
        rows = []
        for part, found in curve["parts"].items():
            cells = [f"{point['seconds']:.2f}" for point in found["points"]]
            slope = f"{found['growth']:.2f} ({found['cpu_growth']:.2f})"
            more = found["growth"] > LINEAR and found["cpu_growth"] > LINEAR
            rows.append([part, *cells, f"**{slope}**" if more else slope])
        head = [name.replace("_", " "), *(str(size) for size in curve["sizes"]), "slope"]
        lines += ["", *table(head, rows)]
    return [*lines, "", source(data)]
