"""The section of docs/performance.md that says what fits on one card, from `benchmarks/fits.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.fits import METHODS, REGIMES, fitting
from benchmarks.sections_gpu import table


def lines(result: Mapping[str, Any], cards: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Markdown: for each card the first regime that fits, and what every regime needs.

    Args:
        result: of `benchmarks.fits`.
        cards: of `benchmarks.gpu`, one for each card that was there.
    """
    rooms, host = result["cards"], result["host_bytes"]
    models = list(dict.fromkeys(cell["model"] for cell in result["cells"]))
    chosen, needed = [], []
    for model in models:
        for method in METHODS:
            cells = [c for c in result["cells"] if (c["model"], c["method"]) == (model, method)]
            found = [fitting(cells, memory, host) for memory in rooms.values()]
            chosen.append([model, method, *(_cell(each) for each in found)])
            by_regime = {cell["regime"]: cell for cell in cells}
            needed.append([model, method, *(_bytes(by_regime[regime]) for regime in REGIMES)])
    sizes = ", ".join(f"{card} {size / 1e9:.1f}" for card, size in rooms.items())
    return [
        "## Which model fits which method on one card",
        "",
        (
            f"{result['kind'].capitalize()}, by `{result['command']}`: the first of "
            f"{'; '.join(REGIMES)} that the card has room for (GB in brackets: of the card, and of the "
            f"host where copies wait there, at most {host / 1e9:.0f}, and of a disk's files). One GPU holds everything: trained "
            "and frozen copies, rollout engine and judge, engines asleep while others work. bfloat16, "
            "gradient checkpointing, micro-batches of 2 rows of one image, 128 tokens and 512 of response. "
            f"What a process gets of a card, GB: {sizes}. {measured(cards)}"
        ),
        "",
        *table(["model", "method", *rooms], chosen),
        "What each regime needs, GB of the card (and of host and disk):",
        "",
        *table(["model", "method", *REGIMES], needed),
    ]


def measured(cards: Sequence[Mapping[str, Any]]) -> str:
    """What of this was measured so far: steps of real models whose plan was held against a card."""
    said = []
    for card in cards:
        steps = [c for c in card["cells"] if c["part"] == "step" and c.get("fits")]
        if steps and not card["tiny"]:
            errors = [step["planned"] / step["measured"] - 1 for step in steps]
            said.append(
                f"{len(steps)} training step(s) on {card['device']}, plans {min(errors):+.1%} to "
                f"{max(errors):+.1%} of what was measured"
            )
    if not said:
        return "Measured so far: nothing; `python -m benchmarks.gpu` measures it."
    return f"Measured so far by `python -m benchmarks.gpu`: {'; '.join(said)}."


def _cell(cell: Mapping[str, Any] | None) -> str:
    return "-" if cell is None else f"{cell['regime']} ({_bytes(cell)})"


def _bytes(cell: Mapping[str, Any]) -> str:
    host = f" + {cell['host_bytes'] / 1e9:.0f} host" if cell["host_bytes"] > 5e8 else ""
    disk = f" + {cell['disk_bytes'] / 1e9:.0f} disk" if cell["disk_bytes"] > 5e8 else ""
    return f"{cell['bytes'] / 1e9:.1f}{host}{disk}"
