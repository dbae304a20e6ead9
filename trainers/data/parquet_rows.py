"""Rows of a parquet file, a few at a time, in order or by number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainers.data.errors import UserError

Row = dict[str, Any]
BATCH_ROWS = 64
"""Rows that exist at once; with images inside, a few tens of MB."""
BUFFER_BYTES = 2**20
"""Read ahead of a column: without a buffer Arrow reads whole row groups, be they the whole file."""


class ParquetRows:
    """A row's position is its number in the file, from 0."""

    kind = "parquet"

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> Iterator[tuple[int, int, Row]]:
        """Every row."""
        position = 0
        with self._open() as file:
            for batch in _batches(file):
                for row in batch.to_pylist():
                    yield position + 1, position, row
                    position += 1

    def read(self, positions: Sequence[int]) -> list[Row]:
        """These rows; of each row group that holds one, everything up to the last is passed over.

        Row groups of a few hundred rows, as `quartet data convert` writes them, make it fast.
        """
        wanted = sorted(set(positions), reverse=True)
        found: dict[int, Row] = {}
        first = 0
        with self._open() as file:
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if wanted and wanted[-1] < end:
                    offset = first
                    for batch in _batches(file, [group]):
                        while wanted and wanted[-1] < offset + batch.num_rows:
                            position = wanted.pop()
                            (found[position],) = batch.slice(position - offset, 1).to_pylist()
                        offset += batch.num_rows
                        if not wanted or wanted[-1] >= end:
                            break
                first = end
        if wanted:
            raise UserError(f"{self.path}: no row {wanted[-1] + 1}; the file has changed")
        return [found[position] for position in positions]

    @contextmanager
    def _open(self) -> Iterator[Any]:
        # Lazily: a JSONL file needs no Arrow, which takes 0.2 s to import.
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
                yield file
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path}: damaged parquet ({reason})") from error


def _batches(file: Any, groups: list[int] | None = None) -> Iterator[Any]:
    batches: Iterator[Any] = file.iter_batches(BATCH_ROWS, row_groups=groups, use_threads=False)
    return batches
