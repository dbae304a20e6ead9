"""Data files of a user: JSONL or parquet in TRL's columns, with the images beside them.

    prompt              a string, or a list of {"role", "content"} turns
    images | image      paths relative to the data file's folder; {"bytes", "path"} in parquet
    chosen, rejected    optional answers; `completion` stands for `chosen`
    truth | ground_truth, id, kind    optional

What is wrong with the whole file raises `UserError`; what is wrong with a row drops it, with the
reason, and more than 5 % of such rows raise. Nothing is repaired silently.
"""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.data.errors import UserError
from trainers.data.records import Sample
from trainers.data.rows import answer, image_references, prompt_turns, truth

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trainers.data.images import ImageStore

MAX_DROPPED = 0.05
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A row that is not used. Example: `Dropped(row=17, reason="prompt is empty")`."""

    row: int
    """Line of a JSONL file, or row of a parquet file; the first is 1."""
    reason: str
    """One line that names the file of a bad image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedData:
    """What a data file gave; the samples' images are in the store."""

    samples: tuple[Sample, ...]
    dropped: tuple[Dropped, ...]
    description: str
    """One line: the format that was detected and what was found in it."""


def load_samples(
    path: str | os.PathLike[str],
    store: ImageStore,
    *,
    image_root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> LoadedData:
    """Samples of a data file, every image decoded once and put into `store`.

    `image_root` replaces the data file's folder as the place that image paths start from and may
    not leave. `limit` stops after that many usable rows.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it counts rows and starts at 1")
    rows = _open_rows(path)
    images = _Images(store, Path(path.parent if image_root is None else image_root))
    columns: set[str] = set()
    styles: set[str] = set()
    samples: dict[str, Sample] = {}
    dropped: list[Dropped] = []
    for number, row in rows:
        columns.update(name for name, value in row.items() if value is not None)
        try:
            sample = _sample(row, default_id=f"{path.stem}-{number}", images=images)
            if sample.id in samples:
                raise UserError(f"id {sample.id!r} is taken by an earlier row")
            samples[sample.id] = sample
            styles.add("plain" if isinstance(row["prompt"], str) else "conversational")
        except UserError as error:
            dropped.append(Dropped(row=number, reason=" ".join(str(error).split())))
        if len(samples) == limit:
            break
    _check_file(path, columns, len(samples), dropped)
    kept = tuple(samples.values())
    found = f"{' and '.join(sorted(styles))} prompts with {_optional(columns)}"
    return LoadedData(
        samples=kept,
        dropped=tuple(dropped),
        description=f"{path.name}: {_counts(path, kept)}, {found}; {len(dropped)} rows dropped",
    )


class _Images:
    """Image references to hashes; a path that many rows share is decoded once."""

    def __init__(self, store: ImageStore, root: Path) -> None:
        self.store = store
        self.root = root.absolute()
        self._hashes: dict[str, str] = {}

    def put(self, reference: str | bytes, position: int) -> str:
        if isinstance(reference, bytes):
            return self.store.put_bytes(reference, f"image {position} (bytes)")
        if reference not in self._hashes:
            self._hashes[reference] = self.store.put_file(self._inside(reference))
        return self._hashes[reference]

    def _inside(self, reference: str) -> Path:
        # By its letters, not resolved: a link inside the folder is its owner's choice.
        path = Path(os.path.normpath(self.root / reference))
        if not path.is_relative_to(os.path.normpath(self.root)) or "\0" in reference:
            raise UserError(
                f"image path {reference!r} leaves {self.root}; move the file there or set the "
                "image root"
            )
        return path


def _sample(row: dict[str, Any], default_id: str, images: _Images) -> Sample:
    if row.get("prompt") is None:
        raise UserError("no prompt")
    references = image_references(row)
    turns = prompt_turns(row["prompt"], len(references))
    chosen, completion = answer(row, "chosen"), answer(row, "completion")
    rejected = answer(row, "rejected")
    sample_id = row.get("id")
    return Sample(
        id=default_id if sample_id is None else str(sample_id),
        prompt=turns,
        images=tuple(images.put(item, i) for i, item in enumerate(references, 1)),
        kind=str(row.get("kind") or ""),
        truth=truth(row),
        chosen=completion if chosen is None else chosen,
        rejected=rejected,
    )


def _open_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows; everything that concerns the file as a whole is checked on the way."""
    if path.suffix.lower() not in (*JSON_SUFFIXES, ".parquet"):
        raise UserError(f"{path}: unknown suffix {path.suffix!r}; use .jsonl or .parquet")
    if not path.is_file():
        raise UserError(f"{path}: {_not_found(path)}")
    return _parquet_rows(path) if path.suffix.lower() == ".parquet" else _json_rows(path)


def _not_found(path: Path) -> str:
    if path.exists():
        return "is not a file"
    if not path.parent.is_dir():
        return f"no such file, and no folder {path.parent}"
    names = [entry.name for entry in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"no such file; nearest names: {', '.join(near)}" if near else "no such file"


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # Lines of bytes: a text file would also be split at separators that JSON allows in a string.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}: line {number} is not JSON ({' '.join(str(error).split())}); "
                    "write one object per line"
                ) from error
            if not isinstance(row, dict):
                raise UserError(
                    f"{path}: line {number} is a {type(row).__name__}; write one object per line"
                )
            yield number, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # Lazily: a JSONL file needs no Arrow, which takes 0.2 s to import.
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged parquet after row {number} ({reason})") from error


def _check_file(path: Path, columns: set[str], num_samples: int, dropped: list[Dropped]) -> None:
    total = num_samples + len(dropped)
    if total == 0:
        raise UserError(f"{path}: empty data set; it needs at least one row")
    if "prompt" not in columns:
        found = ", ".join(sorted(columns)) or "none"
        raise UserError(f"{path}: no column 'prompt'; columns found: {found}; rename the prompt's")
    if len(dropped) > MAX_DROPPED * total:
        first = "; ".join(f"row {bad.row}: {bad.reason}" for bad in dropped[:3])
        raise UserError(
            f"{path}: {len(dropped)} of {total} rows cannot be used, more than "
            f"{MAX_DROPPED:.0%}; mend or remove them: {first}"
        )


def _counts(path: Path, kept: tuple[Sample, ...]) -> str:
    kind = "parquet" if path.suffix.lower() == ".parquet" else "JSONL"
    with_image = sum(bool(sample.images) for sample in kept)
    distinct = len({image for sample in kept for image in sample.images})
    return f"{kind}, {len(kept)} samples ({with_image} with images, {distinct} different images)"


def _optional(columns: set[str]) -> str:
    known = ("chosen", "rejected", "completion", "truth", "ground_truth")
    return ", ".join(name for name in known if name in columns) or "no answers"
