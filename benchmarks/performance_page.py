"""Writes docs/performance.md from the JSON files under benchmarks/ that are there, and the made parts of
docs/training_speed.md and README.md.

    python -m benchmarks.performance_page

Each file has a function that makes its section; one without is shown as a table of its numbers. What
no benchmark can say (explanations, what did not help) is in benchmarks/performance_notes.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import (
    sections_fits,
    sections_gpu,
    sections_readme,
    sections_round,
    sections_training,
    sections_trl,
)
from trainers.comparison import write_atomic

HERE = Path(__file__).parent
TARGET = HERE.parent / "docs" / "performance.md"
TRAINING = HERE.parent / "docs" / "training_speed.md"
README = HERE.parent / "README.md"
NOTES = HERE / "performance_notes.md"
Section = Callable[[Mapping[str, Any]], list[str]]
SECTIONS: dict[str, Section] = {
    "tax_cpu.json": sections_round.tax,
    "tax_wide_cpu.json": sections_round.tax_wide,
    "sync_cpu.json": sections_round.weight_sync,
    "profile_cpu.json": sections_round.profile,
    "overlap_cpu.json": sections_round.overlap,
    "growth_cpu.json": sections_round.growth,
    "fits.json": sections_fits.lines,
    "trl_cpu.json": sections_trl.lines,
    "step_parts_cpu.json": sections_trl.parts,
}
"""File -> its section, in the order of the page; other files follow."""
ELSEWHERE = {"memory_cpu.json", "training_cpu.json"}
"""Files that another page shows: docs/memory.md, docs/training_speed.md."""
HEAD = """# Performance

What a round costs, what overlap saves, and how cost grows; packing, token budgets and shared images are in
docs/training_speed.md, memory in docs/memory.md. Written by `python -m benchmarks.performance_page` from the
files that each section's own command wrote. Every section says whether its figures were measured, and then on which
device, or predicted. Measured ratios are of two ways of doing the same thing in one run, in turn. The machine was shared
with other work: seconds are no more than an order of size, ratios and CPU seconds hold better.
"""


def page(folder: Path, notes: str) -> str:
    """The page, of the files that `folder` has."""
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.json")}
    names = [name for name in SECTIONS if name in there]
    names += sorted(there.keys() - SECTIONS.keys() - ELSEWHERE)
    results = {name: json.loads(there[name].read_text()) for name in names}
    cards = {name: result for name, result in results.items() if name.startswith("gpu/")}
    sections: dict[str, Section] = {
        **SECTIONS,
        **dict.fromkeys(cards, sections_gpu.lines),
        "fits.json": partial(sections_fits.lines, cards=list(cards.values())),
    }
    lines = [HEAD]
    for name, data in results.items():
        make = sections.get(name)
        lines += make(data) if make else plain(name, data)
        lines.append("")
    return "\n".join([*lines, notes.rstrip(), ""])


def training_page(folder: Path, text: str) -> str:
    """`text` with its measured part made anew, of the file that `folder` has."""
    data = json.loads((folder / "training_cpu.json").read_text())
    return sections_training.between(text, sections_training.lines(data))


def readme(folder: Path, text: str) -> str:
    """`text` with its part on speed made anew."""
    tax, fits = (json.loads((folder / name).read_text()) for name in ("tax_cpu.json", "fits.json"))
    made = sections_readme.lines(tax, fits)
    return sections_training.between(text, made, sections_readme.BEGIN, sections_readme.END)


def plain(name: str, data: Mapping[str, Any]) -> list[str]:
    """A file that no function knows: every number by its key."""
    rows = [[f"`{key}`", value] for key, value in numbers(data)]
    return [f"## {name}", "", *sections_gpu.table(["figure", "value"], rows)]


def numbers(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of everything that is not a group; lists in one cell."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from numbers(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        text = f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
        yield prefix, text.replace("|", "\\|")


def main() -> None:
    """Write the pages."""
    write_atomic(TARGET, page(HERE, NOTES.read_text()))
    write_atomic(TRAINING, training_page(HERE, TRAINING.read_text()))
    write_atomic(README, readme(HERE, README.read_text()))


if __name__ == "__main__":
    main()
