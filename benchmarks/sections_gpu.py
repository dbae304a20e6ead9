"""The section of docs/performance.md that `benchmarks.gpu` measured, from its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Cell = Mapping[str, Any]
MISSING = "-"


def lines(result: Mapping[str, Any]) -> list[str]:
    """Markdown of one device's result."""
    name = result["device"]["name"]
    parts = {p: [c for c in result["cells"] if c["part"] == p] for p in ("engine", "step", "round")}
    small = " Families in miniature: this says that the command works, not how fast a card is."
    return [
        f"## `benchmarks.gpu` on {name}",
        "",
        f"{result['label'].capitalize()} in {result['minutes']['taken']:.1f} minutes, "
        + ", ".join(f"{key} {value}" for key, value in result["versions"].items())
        + "."
        + (small if result["tiny"] else ""),
        "",
        *_engine(parts["engine"]),
        *_step(parts["step"]),
        *_round(parts["round"]),
        *_failures(result["cells"]),
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A markdown table; nothing where there are no rows."""
    if not rows:
        return []
    return [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def _number(value: Any, form: str = ",.0f") -> str:
    return MISSING if value is None else format(value, form)


def _engine(cells: Sequence[Cell]) -> list[str]:
    rows = []
    for cell in (c for c in cells if "failure" not in c):
        parity, sync = cell.get("parity", {}), cell.get("sync", {})
        rows.append(
            [
                cell["model"],
                cell["dtype"],
                _number(parity.get("mean"), ".1e"),
                _number(parity.get("max"), ".1e"),
                _number(cell.get("generate", {}).get("tokens_per_second")),
                _number(cell["logprobs"]["tokens_per_second"]),
                _number(cell["logprobs"]["mfu"], ".1%"),
                _number(sync.get("gb_per_second"), ".2f"),
            ]
        )
    head = (
        "model",
        "dtype",
        "parity, mean",
        "max",
        "generate, tokens/s",
        "logprobs, tokens/s",
        "MFU",
        "sync, GB/s",
    )
    return table(head, rows)


def _step(cells: Sequence[Cell]) -> list[str]:
    rows = []
    for cell in (c for c in cells if "failure" not in c):
        fits = cell["fits"]
        rows.append(
            [
                cell["model"],
                cell["regime"],
                cell["method"],
                f"{cell['planned'] / 1e9:.2f}",
                f"{cell['measured'] / 1e9:.2f}" if fits else "does not fit",
                f"{cell['planned'] / cell['measured'] - 1:+.1%}" if fits else MISSING,
                _number(cell["tokens_per_second"]) if fits else MISSING,
                _number(cell["mfu"], ".1%") if fits else MISSING,
            ]
        )
    head = (
        "model",
        "regime",
        "method",
        "planned, GB",
        "measured, GB",
        "plan",
        "train, tokens/s",
        "MFU",
    )
    return table(head, rows)


def _round(cells: Sequence[Cell]) -> list[str]:
    rows = []
    for cell in (c for c in cells if "failure" not in c):
        if not cell["fits"]:
            needed = f"does not fit: {cell['planned'] / 1e9:.1f} GB in {cell['binding_phase']}"
            rows.append([cell["model"], cell["method"], needed, MISSING, MISSING])
            continue
        seconds = cell["seconds_by_phase"]
        told = ", ".join(f"{p} {seconds[p]:.1f}" for p in cell["ledger"] if p in seconds)
        phase, sums = max(cell["ledger"].items(), key=lambda item: sum(item[1].values()))
        whole = sum(sums.values())
        shares = ", ".join(f"{kind} {size / whole:.0%}" for kind, size in sums.items())
        rows.append([cell["model"], cell["method"], told, f"{whole / 1e9:.2f} ({phase})", shares])
    head = ("model", "method", "seconds of a round", "fullest phase, GB", "of it")
    return table(head, rows)


def _failures(cells: Sequence[Cell]) -> list[str]:
    found = [c for c in cells if "failure" in c]
    said = [
        f"* {c['part']} {c['model']}{' ' + c['dtype'] if 'dtype' in c else ''}: {c['failure']}"
        for c in found
    ]
    return ["Not measured:", "", *said, ""] if said else []
