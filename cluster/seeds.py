"""`quartet table`: several comparisons as one Markdown table, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.config_text import read_yaml, validate
from trainers.comparison import load, write_atomic
from trainers.data.errors import UserError
from trainers.seeds import Ordering, decide, gather, markdown


def table(runs: Sequence[Path], orderings: str | None, output: Path | None) -> int:
    """Print the table of the runs, or write it to `output`. Returns the exit code."""
    seeds = gather([load(_file(folder)) for folder in runs])
    text = markdown(seeds, decide(seeds, read_orderings(orderings)))
    if output is None:
        print(text, end="")
    else:
        write_atomic(output, text)
        print(output)
    return 0


def _file(folder: Path) -> Path:
    if not (folder / "compare.json").is_file():
        raise UserError(f"{folder}: no compare.json; give the folder of a comparison")
    return folder / "compare.json"


def read_orderings(path: str | None) -> list[Ordering]:
    """The list under `orderings` of a YAML file; none without a file.

    Raises:
        UserError: the file has no such list, or an entry does not fit; names file, entry and key.
    """
    if path is None:
        return []
    listed = read_yaml(path).get("orderings")
    if not isinstance(listed, list):
        raise UserError(f"{path}: no list `orderings`")
    return [
        validate(Ordering, entry, f"{path}: ordering {number}")
        for number, entry in enumerate(listed, start=1)
    ]
