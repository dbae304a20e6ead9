"""The measured part of docs/training_speed.md, from `benchmarks/training_cpu.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.result import source
from benchmarks.sections_gpu import table

BEGIN, END = "<!-- from benchmarks/training_cpu.json -->", "<!-- by hand again -->"


def lines(data: Mapping[str, Any]) -> list[str]:
    """Markdown: every switch on every model and load."""
    shortest, longest = data["answer_tokens"]
    gap = max(cell["loss_gap"] for cell in data["cells"])
    rows = [
        [
            cell["model"],
            cell["load"],
            cell["switch"],
            f"{cell['ratio']:.2f}",
            ", ".join(f"{ratio:.2f}" for ratio in cell["ratios"]),
            f"{cell['tokens_per_second']:,.0f}",
            f"{sum(cell['peak_bytes'].values()) / 1e6:.1f}",
        ]
        for cell in data["cells"]
    ]
    head = ["model", "load", "setting", "ratio", "each turn", "tokens a second", "peak, MB"]
    return [
        source(data),
        "",
        (
            f"float32, {data['threads']} thread(s). A step is {data['rows']} rows with answers of {shortest} to {longest} random "
            f"tokens, {data['rows_per_forward']} rows a forward without the settings; the budget is what such a forward has at "
            f"most. `pairs`: {data['rows'] // 2} pairs, each of an image (DPO); `answers`: 8 answers to one prompt, each by itself "
            f"(SFT). All sides take their steps in turn in one process; a ratio is the median of {data['turns']} turns, in "
            f"{data['seconds']}, and above 1 is faster. The peak is of all kinds of bytes. The first step's losses differ by "
            f"{gap:.0e} at most."
        ),
        "",
        *table(head, rows),
    ]


def between(page: str, made: Sequence[str], begin: str = BEGIN, end: str = END) -> str:
    """The page with what was made between its marks; the rest is written by hand.

    Raises:
        ValueError: the page lacks a mark, or has it twice.
    """
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page needs {begin} and {end} once each")
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return "\n".join([before + begin, "", *made, end + after])
