"""What `quartet eval` prints: JSON, or a table of metrics by column with the notes under it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.eval_options import Request


def finite(value: Any) -> Any:
    """`value` with NaN as null, which JSON has no word for: a rate without a denominator."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def table(columns: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines of metrics by column; a standard error stands beside its metric."""
    names = [name for name in next(iter(columns.values())) if not name.endswith("_se")]
    lines = [f"{'':32} " + " ".join(f"{title:>20}" for title in columns)]
    for name in names:
        cells = []
        for values in columns.values():
            value, error = values[name], values.get(f"{name}_se")
            text = "-" if math.isnan(value) else f"{value:.4f}"
            if error is not None and not math.isnan(error):
                text += f" ± {error:.4f}"
            cells.append(f"{text:>20}")
        lines.append(f"{name:32} " + " ".join(cells))
    return lines


def show(
    request: Request,
    folder: Path,
    columns: Mapping[str, Mapping[str, float]],
    notes: Sequence[str],
    result: Mapping[str, Any],
) -> None:
    """Print the result on standard output."""
    if request.as_json:
        print(json.dumps(finite(result), indent=2))
        return
    print("\n".join(table(columns)))
    for note in notes:
        print(f"* {note}")
    print(f"answers and metrics: {folder}")
