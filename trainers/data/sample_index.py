"""A data file checked once and then read by position: 16 bytes a row stay in memory, not the row.

The pass over the file converts every row and checks ids, placeholders and image paths. Images are
decoded only where a sample is taken, except those of the first `DECODED_ROWS` rows: a wrong folder
or a format that cannot be read shows there, before anything slow starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainers.data.datasets import SampleFile
from trainers.data.errors import UserError
from trainers.data.formats.base import Content
from trainers.data.records import Sample
from trainers.data.tally import Dropped, Tally

DECODED_ROWS = 512


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """The usable rows of a data file, in its order."""

    file: SampleFile
    positions: np.ndarray
    """int64, shape (N,): where each row starts (`trainers.data.row_files`)."""
    numbers: np.ndarray
    """int64, shape (N,): number of the row in messages."""

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, which: Sequence[int]) -> list[Sample | Dropped]:
        """The samples `which` (0 to N - 1) in this order, their images decoded and stored.

        Limiting case: `range(N)` gives what `stream_samples` gave for the usable rows.
        """
        rows = self.file.rows.read([int(self.positions[i]) for i in which])
        taken: list[Sample | Dropped] = []
        for i, row in zip(which, rows, strict=True):
            number = int(self.numbers[i])
            try:
                taken.append(self.file.sample(*self.file.content(number, row)))
            except UserError as error:
                taken.append(Dropped(row=number, reason=" ".join(str(error).split())))
        return taken

    def contents(self) -> Iterator[tuple[str, Content]]:
        """Name and content of each usable row in the file's order; no image is opened."""
        found = 0
        for number, position, row in self.file.rows.rows():
            if found == len(self):
                return
            if position == self.positions[found]:
                found += 1
                yield self.file.content(number, row)

    def only(self, keep: Sequence[bool] | np.ndarray) -> SampleIndex:
        """Without the rows where `keep` (shape (N,)) is false."""
        mask = np.asarray(keep, dtype=bool)
        return SampleIndex(self.file, self.positions[mask], self.numbers[mask])


def index_samples(file: SampleFile, tally: Tally, max_dropped: float) -> SampleIndex:
    """One pass over the file, counted in `tally`.

    Raises:
        UserError: more than the share `max_dropped` of the rows cannot be used.
    """
    # Grown by doubling: a list of a million integers would be five times as large.
    found = np.empty((2, 1024), dtype=np.int64)
    for number, position, row in file.rows.rows():
        try:
            name, content = file.content(number, row)
            if tally.samples + tally.num_dropped < DECODED_ROWS:
                file.sample(name, content)
            tally.add(name, content)
        except UserError as error:
            tally.drop(number, error)
            continue
        if tally.samples > found.shape[1]:
            found = np.concatenate([found, np.empty_like(found)], axis=1)
        found[:, tally.samples - 1] = position, number
    tally.check(file.path, max_dropped)
    positions, numbers = found[:, : tally.samples]
    return SampleIndex(file, positions, numbers)
