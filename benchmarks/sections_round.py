"""Sections of docs/performance.md on a round: tax, profile, overlap, growth. JSON in, lines of Markdown out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.figures import RAW
from benchmarks.result import source
from benchmarks.sections_gpu import table

LINEAR = 1.1
"""A slope above this is more than linear."""
SMALL = 0.01
"""Of a round: places of a profile below it share a line."""


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
        cells = [phase]
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
        "### Where a round's time goes",
        "",
        "Seconds by phase; in brackets the raw engine calls of that phase.",
        "",
        *table(["phase", *methods], profile),
        source(data),
    ]


def tax_wide(data: Mapping[str, Any]) -> list[str]:
    """The same rows with a wider policy: what of the tax stays where it was."""
    rows = []
    for name, found in data["methods"].items():
        raw = sum(found["raw_seconds"].get(phase, 0.0) for phase in RAW)
        seconds = found["round_seconds"]
        rows.append(
            [
                name,
                f"{found['tax']:.2f}",
                f"{found['cpu_tax']:.2f}",
                f"{seconds:.1f} s, {raw:.1f} s",
                f"{found['rollout_throughput_ratio']:.2f}",
            ]
        )
    head = ["method", "tax", "CPU", "a round, its raw calls", "throughput / bare `LLM.generate`"]
    return [
        f"### A policy {data['width']} times as wide",
        "",
        f"{data['rollouts_per_round']} rollouts a round, medians of {data['measured_rounds']} rounds.",
        "",
        *table(head, rows),
        source(data),
    ]


def weight_sync(data: Mapping[str, Any]) -> list[str]:
    """A sync beside a copy of its bytes."""
    rows = [
        [
            f"{size['bytes'] / 1e6:.1f}",
            f"{size['sync']:.3f}",
            f"{size['copy']:.3f}",
            f"{size['reload']:.3f}",
            f"{size['sync_over_copy']:.1f}",
            f"{size['sync_over_reload']:.1f}",
            f"{size['bytes'] / size['sync'] / 1e9:.2f}",
        ]
        for size in data["sizes"]
    ]
    head = ["MB", "sync, s", "copy, s", "reload, s", "sync / copy", "sync / reload", "GB/s"]
    return [
        "## A weight sync, by size",
        "",
        (
            "Copy: the same arrays to the engine's process through the object store, and out of it once. Reload: vLLM's own, of "
            f"tensors that are there already. Medians of {data['repeats']} turns. Target: sync / copy 2."
        ),
        "",
        *table(head, rows),
        source(data),
    ]


def profile(data: Mapping[str, Any]) -> list[str]:
    """Where a round's time goes, by what each process was seen doing."""
    lines = [
        "## A profile of one round",
        "",
        (
            f"{data['rollouts_per_round']} rollouts a round, means of {data['measured_rounds']} rounds. Every process was looked "
            "at every few milliseconds: our innermost function, and the library that it had called. Processes work side by "
            "side, so shares (of the phases' seconds together) are no parts of a whole. The driver's waiting is left out."
        ),
        "",
    ]
    for name, found in data["methods"].items():
        whole = sum(found["phases"].values())
        working = [place for place in found["places"] if not _waits(place)]
        small = [place["seconds"] for place in working if place["seconds"] < SMALL * whole]
        rows = [
            [place["phase"], place["process"], f"`{place['function']}`", place["library"]]
            for place in working[: len(working) - len(small)]  # the most seconds come first
        ]
        rows.append([f"{len(small)} places under {SMALL:.0%}", "", "", ""])
        spent = [*(place["seconds"] for place in working[: len(rows) - 1]), sum(small)]
        for row, seconds in zip(rows, spent, strict=True):
            row += [f"{seconds:.3f}", f"{seconds / whole:.1%}"]
        head = ["phase", "process", "function of ours", "library", "seconds a round", "share"]
        lines += [f"### {name}: {whole:.2f} s a round", "", *table(head, rows)]
    return [*lines, source(data)]


def _waits(place: Mapping[str, Any]) -> bool:
    """The driver for an answer: what is done meanwhile is seen in the process that does it."""
    asks = (place["process"], place["library"]) == ("driver", "ray")
    return asks and str(place["function"]).startswith("cluster.wait.")


def overlap(data: Mapping[str, Any]) -> list[str]:
    """Overlap on against off."""
    slices, early, alike = data["slices"], data["off_policy"], data["judged_alike"]
    signals = data["signals"]
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
                [
                    "copies on GPUs of their own (always)",
                    f"{signals['ratio']:.2f}",
                    f"what {signals['copies']} copies say of PPO's {signals['rows']} rows",
                ],
            ],
        ),
        (
            f"Of {alike['answers']} answers judged in one call and in slices, {alike['equal_critiques']} got "
            f"the same critique, {alike['unequal_failures']} another failure; scores differ by at most "
            f"{alike['largest_score_gap'] or 0:.1e}. What the copies said one after another and at the "
            f"same time differs by at most {signals['largest_gap']:.1e}."
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
            "Seconds at each point, and the slope of log seconds over log size from the middle point to the last "
            "(1: linear; CPU seconds in brackets)."
        ),
        "",
    ]
    for name, curve in data["curves"].items():
        rows = []
        for part, found in curve["parts"].items():
            cells = [f"{point['seconds']:.2f}" for point in found["points"]]
            slope = f"{found['growth']:.2f} ({found['cpu_growth']:.2f})"
            more = found["growth"] > LINEAR and found["cpu_growth"] > LINEAR
            rows.append([part, *cells, f"**{slope}**" if more else slope])
        head = [name.replace("_", " "), *(str(size) for size in curve["sizes"]), "slope"]
        lines += table(head, rows)
    return [*lines, source(data)]
