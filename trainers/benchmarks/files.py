"""Reading benchmark files: what is missing or broken is one line that says where it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainers.data.errors import UserError

IMAGE_FOLDERS = ("", "images", "image", "val2014", "train2014")
"""Folders of the data folder that are searched for images."""


def find_file(data: Path, names: Iterable[str], source: str) -> Path:
    """The first of `names` (paths below `data`) that is a file.

    Raises:
        UserError: none is; names the first, and `source`, where it comes from.
    """
    names = list(names)
    if not data.is_dir():
        raise UserError(f"{data}: no such folder; it should hold {names[0]}, from {source}")
    for name in names:
        if (data / name).is_file():
            return data / name
    raise UserError(f"{data / names[0]}: no such file; it comes from {source}")


def find_image(data: Path, name: str, source: str) -> Path:
    """The image file `name` below `data`, in one of `IMAGE_FOLDERS`."""
    return find_file(data, (f"{folder}/{name}".lstrip("/") for folder in IMAGE_FOLDERS), source)


def read_json(path: Path) -> Any:
    """A JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({_line(error)}); download it again") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """One object per line; empty lines are skipped."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is not JSON ({_line(error)})") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}: line {number} is a {type(row).__name__}, not an object")
            rows.append(row)
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def fields(row: dict[str, Any], names: tuple[str, ...], where: str) -> list[Any]:
    """The row's values of `names`.

    Raises:
        UserError: one is missing; names the row by `where`.
    """
    for name in names:
        if row.get(name) is None:
            found = ", ".join(sorted(row))
            raise UserError(f"{where}: no {name!r}; the row has {found or 'nothing'}")
    return [row[name] for name in names]


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """The text of a file with one object per line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
