"""A data file in any known format as parquet in TRL's columns, or as records with their images.

Both are written sample by sample under a temporary name and renamed when they are whole. What is
read back is equal to what was written (`tests/trainers/data/test_convert.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.data.errors import UserError
from trainers.data.export import CANDIDATES, FLAG, NUMBER, TEXT, prompt_columns, trl_schema
from trainers.data.record_file import RecordWriter
from trainers.data.records import Sample

if TYPE_CHECKING:
    from trainers.data.images import ImageStore

COLUMNS = {
    "id": TEXT,
    "kind": TEXT,
    "truth": TEXT,
    "chosen": TEXT,
    "rejected": TEXT,
    "is_tie": FLAG,
    "margin": NUMBER,
    "candidates": CANDIDATES,
    "provenance": TEXT,
}
"""Beside `prompt` and `images`. TRL knows chosen, rejected and margin, and leaves the others be."""
GROUP_ROWS = 256
"""Rows of a row group: a single row is found by reading no more than these."""
GROUP_BYTES = 2**26


def write_trl(path: Path, samples: Iterable[Sample], store: ImageStore) -> int:
    """Parquet in TRL's columns with the images inside; returns the number of rows.

    Raises:
        UserError: the file cannot be written, or a sample holds what JSON or UTF-8 cannot.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = trl_schema(COLUMNS)
    written = 0
    with (
        _replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as file,
    ):
        for rows in _groups(_row(sample, store) for sample in samples):
            try:
                table = pa.Table.from_pylist(rows, schema=schema)
            except (pa.ArrowException, ValueError) as error:
                reason = " ".join(str(error).split())
                raise UserError(
                    f"{path}: rows from {rows[0]['id']} on cannot be written as parquet "
                    f"({reason}); use --to msgpack"
                ) from error
            file.write_table(table, row_group_size=GROUP_ROWS)
            written += len(rows)
    return written


def write_records(path: Path, samples: Iterable[Sample]) -> int:
    """A record file of the samples; their images are those of the store that made them."""
    written = 0
    with _replacing(path) as temporary, RecordWriter(temporary) as file:
        for sample in samples:
            file.append(sample)
            written += 1
    return written


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place at the end and is gone on an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Row groups that are small in rows and in bytes of images."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += sum(len(image["bytes"]) for image in row["images"])
        if len(group) == GROUP_ROWS or size > GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _row(sample: Sample, store: ImageStore) -> dict[str, Any]:
    return {
        **prompt_columns(sample, store),
        "id": sample.id,
        "truth": None if sample.truth is None else _json(sample.truth, sample.id),
        "chosen": sample.chosen,
        "rejected": sample.rejected,
        "is_tie": sample.is_tie,
        "margin": sample.margin,
        "candidates": [
            asdict(item) | {"aspects": _json(item.aspects, sample.id)} for item in sample.candidates
        ],
        "provenance": _json(sample.provenance, sample.id),
    }


def _json(value: Any, sample_id: str) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"sample {sample_id}: what it holds has no form in JSON ({error}); use --to msgpack"
        ) from error
