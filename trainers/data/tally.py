"""What a pass over a data file counts: usable rows, dropped rows with reasons, ids and images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainers.data.errors import UserError
from trainers.data.formats.base import Content

MAX_REASONS = 1000
"""Dropped rows whose reasons are kept; the rest is counted, for a file may have millions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A row that is not used. Example: `Dropped(row=17, reason="prompt is empty")`."""

    row: int
    """Line of a JSONL file, element of a JSON array or row of a parquet file; the first is 1."""
    reason: str
    """One line that names the file of a bad image."""


@dataclass(slots=True)
class Tally:
    """What a pass over a file has counted, for the line that describes it."""

    samples: int = 0
    with_images: int = 0
    max_images: int = 0
    dropped: list[Dropped] = field(default_factory=list)
    """The first of them."""
    num_dropped: int = 0
    columns: set[str] = field(default_factory=set)
    """Optional ones that some row has."""
    ids: set[int] = field(default_factory=set)
    """Fingerprints: a hundred bytes a row in place of the ids."""
    images: set[int] = field(default_factory=set)

    def add(self, name: str, content: Content) -> None:
        """Count a usable row. Raises `UserError` where an earlier row has its id."""
        mark = _fingerprint(name)
        if mark in self.ids:
            raise UserError(f"id {name!r} is taken by an earlier row")
        self.ids.add(mark)
        self.samples += 1
        self.with_images += bool(content.images)
        self.max_images = max(self.max_images, len(content.images))
        self.images.update(map(_fingerprint, content.images))
        self.columns.update(_optional(content))

    def drop(self, row: int, error: UserError) -> Dropped:
        """Count a row that cannot be used."""
        dropped = Dropped(row=row, reason=" ".join(str(error).split()))
        self.num_dropped += 1
        if len(self.dropped) < MAX_REASONS:
            self.dropped.append(dropped)
        return dropped

    def check(self, path: Path, max_dropped: float) -> None:
        """Raises `UserError` for a file without rows or with too many bad ones."""
        total = self.samples + self.num_dropped
        if total == 0:
            raise UserError(f"{path}: empty data set; it needs at least one row")
        if self.num_dropped > max_dropped * total:
            first = "; ".join(f"row {bad.row}: {bad.reason}" for bad in self.dropped[:3])
            raise UserError(
                f"{path}: {self.num_dropped} of {total} rows cannot be used, more than "
                f"{max_dropped:.0%}; mend or remove them: {first}"
            )


def _optional(content: Content) -> Iterator[str]:
    """Which of the optional parts a row has."""
    for name in ("chosen", "rejected", "truth", "margin"):
        if getattr(content, name) is not None:
            yield name
    if content.candidates:
        yield "candidates"
    if any(item.critique for item in content.candidates):
        yield "critiques"
    if content.is_tie:
        yield "ties"


def _fingerprint(value: str | bytes) -> int:
    """64 bits: among a million, two are the same with a chance of 1 to 37 million."""
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
