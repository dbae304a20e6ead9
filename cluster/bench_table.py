"""`quartet bench memory` on the terminal, and against a committed baseline."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import ASCII2
from rich.console import Console
from rich.table import Table

from trainers.data.errors import UserError

COLUMNS = ("method", "copies", "stay MB", ":", "peak MB", ":", "plan", "s/step", "tokens/s")
TOLERANCE = 0.05
"""Largest change of a measured peak against the baseline."""


def run(arguments: argparse.Namespace) -> int:
    """`quartet bench memory`. Returns 1 if a peak left the baseline."""
    from cluster.bench import REGIMES, Load, as_json, bench_memory, write
    from cluster.bench_models import check_name
    from trainers.config import METHODS

    for name in arguments.models:
        check_name(name)
    if unknown := [name for name in arguments.methods if name not in METHODS]:
        raise UserError(f"--methods {unknown[0]}: unknown; methods: {', '.join(METHODS)}")
    if unknown := [name for name in arguments.regimes or () if name not in REGIMES]:
        raise UserError(f"--regimes {unknown[0]}: unknown; regimes: {', '.join(REGIMES)}")
    regimes = arguments.regimes or tuple(REGIMES)
    baseline = _baseline(arguments.baseline) if arguments.baseline else None
    load = Load(batch=arguments.batch, sequence=arguments.sequence, bf16=arguments.bf16)
    if baseline and Load(**baseline["load"]) != load:
        raise UserError(f"{arguments.baseline}: made with {baseline['load']}; give the same")
    cells = bench_memory(arguments.models, arguments.methods, load, regimes)
    result = as_json(cells, load)
    console = Console()
    for table in tables(result):
        console.print(table)
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    console.print(
        f"[dim]measured on {result['device']}, {versions}; planned: static bytes "
        "predicted, activations traced (vision tower: analytic)[/dim]"
    )
    if arguments.output:
        write(cells, load, Path(arguments.output))
        console.print(f"numbers: {arguments.output}")
    changes = differences(result, baseline) if baseline else []
    for line in changes:
        console.print(f"[red]{line}[/red]")
    return 1 if changes else 0


def tables(result: Mapping[str, Any]) -> list[Table]:
    """One for each model and regime; ratios against nSFT, or the first method."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in result["cells"]:
        groups.setdefault((cell["model"], cell["regime"]), []).append(cell)
    shown = []
    for (model, regime), cells in groups.items():
        done = [cell for cell in cells if fits(cell)]
        base = next((c for c in done if c["method"] == "nsft"), done[0] if done else None)
        table = Table(box=ASCII2, title=f"{model}, {regime}", title_justify="left")
        for title in COLUMNS:
            table.add_column(title, justify="left" if title == "method" else "right")
        for cell in cells:
            if base is None or not fits(cell):
                table.add_row(cell["method"], str(len(cell["planned"])), *["-"] * 7)
                continue
            table.add_row(
                cell["method"],
                str(len(cell["measured"])),
                f"{static(cell) / 1e6:.1f}",
                f"{static(cell) / static(base):.2f}",
                f"{cell['peak'] / 1e6:.1f}",
                f"{cell['peak'] / base['peak']:.2f}",
                f"{cell['planned_peak'] / cell['peak'] - 1:+.1%}",
                f"{cell['seconds_per_step']:.2f}",
                f"{cell['tokens_per_second']:.0f}",
            )
        shorts = [f"{c['method']} {shortage(c)}" for c in cells if not fits(c)]
        table.caption, table.caption_justify = "\n".join(shorts) or None, "left"
        shown.append(table)
    return shown


def fits(cell: Mapping[str, Any]) -> bool:
    """Whether the cell was measured; older files have no cell that was not."""
    return bool(cell.get("fits", True))


def shortage(cell: Mapping[str, Any]) -> str:
    """Why a cell was not measured."""
    needed, free = cell["needed"] / 1e9, cell["free"] / 1e9
    return f"does not fit: needs {needed:.1f} GB, {free:.1f} free (predicted)"


def static(cell: Mapping[str, Any]) -> int:
    """Bytes that stay over a step: all kinds but what comes and goes with a batch, and the
    gradients whole, which at the peak may not all exist yet.
    """
    return sum(size for kinds in cell["static"].values() for size in kinds.values())


def differences(result: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """A line for each peak that is not within `TOLERANCE` of the baseline's, or is not in it."""
    known = {
        (c["model"], c["method"], c["regime"]): c["peak"] for c in baseline["cells"] if fits(c)
    }
    lines = []
    for cell in result["cells"]:
        key = (cell["model"], cell["method"], cell["regime"])
        if key not in known:
            lines.append(f"{' '.join(key)}: not in the baseline; write it anew with --output")
        elif not fits(cell):
            lines.append(f"{' '.join(key)}: {shortage(cell)}")
        elif abs(cell["peak"] / known[key] - 1) > TOLERANCE:
            change = cell["peak"] / known[key] - 1
            lines.append(
                f"{' '.join(key)}: peak {cell['peak']:,} bytes, {change:+.1%} of the baseline"
            )
    return lines


def _baseline(path: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--baseline {path}: cannot be read ({error})") from error
    if not {"cells", "load"} <= set(value):
        raise UserError(f"--baseline {path}: no cells; give a file written by --output")
    return value
