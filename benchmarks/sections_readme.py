"""The generated part of the README's section on speed: a round on this CPU, and what fits where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.figures import RAW
from benchmarks.fits import METHODS, fitting
from benchmarks.result import source
from benchmarks.sections_gpu import table

BEGIN, END = "<!-- made by python -m benchmarks.performance_page -->", "<!-- by hand again -->"
SHORT = {
    "full": "full",
    "full, optimiser on the host": "offload",
    "full, that and reference cached": "offload, cached",
    "full, one copy at a time": "turns",
    "full, optimiser on a disk": "disk",
    "full, on a disk, reference cached": "disk, cached",
    "LoRA 64": "LoRA",
    "LoRA 64, one copy at a time": "LoRA, turns",
}


def lines(tax: Mapping[str, Any], fits: Mapping[str, Any]) -> list[str]:
    """Both tables, each with where it is from."""
    return [*_rounds(tax), *_fits(fits)]


def _rounds(tax: Mapping[str, Any]) -> list[str]:
    found = tax["methods"]

    def row(name: str, value: Any) -> list[str]:
        return [name, *(value(each) for each in found.values())]

    return [
        f"A round of {tax['rollouts_per_round']} answers with the built-in model:",
        "",
        *table(
            ["", *found],
            [
                row("seconds a round", lambda f: f"{f['round_seconds']:.1f}"),
                row(
                    "of them raw calls of vLLM, DeepSpeed and models",
                    lambda f: f"{sum(f['raw_seconds'].get(p, 0.0) for p in RAW):.1f}",
                ),
                row("their ratio, median of rounds", lambda f: f"{f['tax']:.2f}"),
                row("tokens generated a second", lambda f: f"{_tokens(f):,.0f}"),
                row(
                    "as a share of bare `LLM.generate`",
                    lambda f: f"{f['rollout_throughput_ratio']:.2f}",
                ),
                row("weight sync, seconds", lambda f: f"{f['sync']['seconds']:.2f}"),
            ],
        ),
        source(tax),
        "",
    ]


def _tokens(found: Mapping[str, Any]) -> float:
    """A second of the phase `generate`."""
    return float(median(one["tokens"] / one["phases"]["generate"] for one in found["rounds"]))


def _fits(fits: Mapping[str, Any]) -> list[str]:
    rooms, host = fits["cards"], fits["host_bytes"]
    models = list(dict.fromkeys(cell["model"] for cell in fits["cells"]))
    rows = []
    for model in models:
        cells = [
            [c for c in fits["cells"] if (c["model"], c["method"]) == (model, m)] for m in METHODS
        ]
        rows.append([model, *(_card(cells, room, host) for room in rooms.values())])
    return [
        (
            f"Which regime fits one card that holds every copy, engine and judge ({' / '.join(METHODS)}). "
            f"Predicted by `{fits['command']}` in bfloat16 for at most {host / 1e9:.0f} GB of host memory; "
            "*offload* has the optimiser on the host, *disk* on an NVMe disk, *cached* no reference at all, *turns* one copy at a time on the "
            "card, *LoRA* adapters of rank 64:"
        ),
        "",
        *table(["model", *rooms], rows),
    ]


def _card(by_method: Sequence[list[dict[str, Any]]], room: int, host: int) -> str:
    found = [fitting(cells, room, host) for cells in by_method]
    return " / ".join("-" if each is None else SHORT[each["regime"]] for each in found)
