"""What a format is: how its rows are recognised, and how one becomes `Content`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainers.data.errors import UserError
from trainers.data.records import Candidate, Turn
from trainers.data.rows import plain

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One row in the words of `trainers.data.records`, its images not looked up yet."""

    prompt: tuple[Turn, ...]
    images: tuple[str | bytes, ...] = ()
    """Paths as the row writes them, or the bytes of the files."""
    id: str | None = None
    id_repeats: bool = False
    """Rows of this format share ids: the row's number is added to make the sample's."""
    kind: str = ""
    truth: dict[str, Any] | None = None
    chosen: str | None = None
    rejected: str | None = None
    candidates: tuple[Candidate, ...] = ()
    is_tie: bool = False
    margin: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A known layout of rows."""

    name: str
    """As `data.format` and `--format` take it."""
    title: str
    needs: str
    """The columns that tell it, for the message about a file that no format fits."""
    detect: Callable[[frozenset[str], Sequence[Row]], bool]
    """Whether these columns (those with a value) and first rows are of this format."""
    read: Callable[[Row], Content]
    """Raises `UserError`, which does not name the row, for a row that cannot be used."""


def text_of(row: Row, column: str) -> str | None:
    """A column that holds text or nothing; surrounding space is no text."""
    value = row.get(column)
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(f"{column} is a {type(value).__name__}, not text")
    return value.strip() or None


def number_of(value: Any, where: str) -> float | None:
    """A finite number, also one written as text; None for none."""
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where} is {str(value)[:40]!r}, not a number")
    return number


def flag_of(row: Row, column: str) -> bool | None:
    """A column of true and false; 0 and 1 are taken for them."""
    value = row.get(column)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise UserError(f"{column} is {str(value)[:40]!r}; use true or false")


def id_of(row: Row, column: str = "id") -> str | None:
    """The row's own name as text."""
    value = row.get(column)
    return None if value is None else str(value)


def rest_of(row: Row, columns: Collection[str]) -> dict[str, Any]:
    """Those of `columns` that have a value, as a record can hold them."""
    return {name: plain(row[name]) for name in columns if row.get(name) not in (None, "")}


def refuse(row: Row, *columns: str) -> None:
    """Raise for a row that has something in one of `columns`, which stand for no image."""
    for column in columns:
        if row.get(column) not in (None, "", [], {}, False):
            raise UserError(f"the row has {column}; only text and images are read")


def best_and_worst(candidates: Sequence[Candidate]) -> tuple[str | None, str | None, bool]:
    """Chosen, rejected and whether all are equal, by score; earlier ones first among equals.

    Limiting case: fewer than two scored answers -> (the one, None, False), or none at all.
    """
    scored = [item for item in candidates if item.score is not None]
    if not scored:
        return None, None, False
    best = max(scored, key=lambda item: item.score or 0.0)
    worst = min(scored, key=lambda item: item.score or 0.0)
    if best.score == worst.score:
        return (best.text, None, False) if len(scored) == 1 else (None, None, True)
    return best.text, worst.text, False
