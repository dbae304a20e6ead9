"""The section of docs/performance.md that `benchmarks.gpu` measured, from its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.result import source

Cell = Mapping[str, Any]
MISSING = "-"


def lines(result: Mapping[str, Any]) -> list[str]:
    """Markdown of one device's result."""
    parts = {p: [c for c in result["cells"] if c["part"] == p] for p in ("engine", "step", "round")}
    small = " Families in miniature: this says that the command works, not how fast a card is."
    return [
        f"## `benchmarks.gpu` on {result['device']}",
        "",
        f"{source(result)} It took {result['minutes']['taken']:.1f} minutes."
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
    for cell in (c for c in cells if "logprobs" in c):
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
                sync.get("transport", MISSING),
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
        "of",
    )
    return table(head, rows)


def _step(cells: Sequence[Cell]) -> list[str]:
    rows = []
    for cell in (c for c in cells if "failure" not in c):
        fits = cell["fits"]
        claimed = [claimed_share(held) for held in cell["processes"].values()] if fits else []
        rows.append(
            [
                cell["model"],
                cell["regime"],
                cell["method"],
                _gb(cell["planned"], cell["planned_host"]),
                _gb(cell["measured"], cell["measured_host"]) if fits else "does not fit",
                f"{cell['planned'] / cell['measured'] - 1:+.1%}" if fits else MISSING,
                ", ".join(f"{share:.1%}" for share in claimed) or MISSING,
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
        "claimed",
        "train, tokens/s",
        "MFU",
    )
    return table(head, rows)


def claimed_share(held: Mapping[str, int | None]) -> float:
    """What copies claim of all tensors that the process was seen to hold."""
    claimed = held.get("claimed") or 0
    return claimed / (claimed + (held.get("unattributed") or 0))


def _gb(device: int, host: int) -> str:
    """Bytes on the device, and those in host memory beside it, if any."""
    return f"{device / 1e9:.2f}" + (f" + {host / 1e9:.2f} host" if host else "")


def _round(cells: Sequence[Cell]) -> list[str]:
    rows = []
    for cell in (c for c in cells if "failure" not in c):
        planned = f"{_gb(cell['planned'], cell['planned_host'])} ({cell['binding_phase']})"
        if not cell["fits"]:
            where = f"does not fit: lacks {cell['lacks']} memory"
            rows.append([cell["model"], cell["method"], where, planned, *[MISSING] * 3])
            continue
        seconds = cell["seconds_by_phase"]
        told = ", ".join(f"{p} {seconds[p]:.1f}" for p in cell["ledger"] if p in seconds)
        told += "" if "train" in seconds else "; nothing was trained"
        phase, sums = max(cell["ledger"].items(), key=lambda item: sum(item[1].values()))
        whole = sum(sums.values())
        shares = [f"{kind} {size / whole:.0%}" for kind, size in sums.items()]
        shares += (
            ["runtime of " + ", ".join(cell["unknown"]) + " unknown"] if cell["unknown"] else []
        )
        measured = f"{_gb(cell['measured'], cell['measured_host'])} ({phase})"
        rows.append(
            [
                cell["model"],
                cell["method"],
                told,
                planned,
                measured,
                f"{claimed_share(sums):.1%}",
                ", ".join(shares),
            ]
        )
    head = (
        "model",
        "method",
        "seconds of a round",
        "planned, GB",
        "fullest phase, GB",
        "claimed",
        "of it",
    )
    return table(head, rows)


def _failures(cells: Sequence[Cell]) -> list[str]:
    found = [cell for cell in cells if "failure" in cell]
    head = ("part", "model", "of it", "why")
    rows = []
    for cell in found:
        of = " ".join(cell[key] for key in ("dtype", "method", "regime") if key in cell)
        rows.append([cell["part"], cell["model"], of or MISSING, cell["failure"].replace("|", "/")])
    return ["Not measured:", "", *table(head, rows)] if rows else []
