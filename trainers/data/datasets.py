"""Data files of a user: JSONL, JSON arrays or parquet in a known format, images beside or inside.

    SampleFile     the file, its format told from columns and first rows
    stream_samples one sample after the other; memory does not grow with the samples
    load_samples   all of them, for files that fit

What is wrong with the whole file raises `UserError`; what is wrong with a row drops it, with the
reason, and more than 5 % of such rows raise. Nothing is repaired silently. `docs/data.md` has an
example row of every format (`trainers.data.formats`).
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.data.errors import UserError
from trainers.data.formats.base import Content, Format
from trainers.data.formats.detection import find_format
from trainers.data.records import Sample
from trainers.data.remote_images import RemoteImages, is_url
from trainers.data.row_files import RowFile, open_rows
from trainers.data.tally import Dropped, Tally

if TYPE_CHECKING:
    from trainers.data.images import ImageStore

MAX_DROPPED = 0.05
FIRST_ROWS = 16
"""Rows that tell the format."""
CACHED_HASHES = 10_000
"""Image paths whose hashes are remembered, so that rows which share an image decode it once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedData:
    """What a data file gave; the samples' images are in the store."""

    samples: tuple[Sample, ...]
    dropped: tuple[Dropped, ...]
    description: str
    """One line: the format that was detected and what was found in it."""


class SampleFile:
    """A data file that was opened: its rows, their format, and where its images are.

    `image_root` replaces the data file's folder as the place that image paths start from and may
    not leave. With `allow_urls` images are fetched, too (`trainers.data.remote_images`). Raises
    `UserError` for what is wrong with the file as a whole.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        store: ImageStore,
        *,
        image_root: str | os.PathLike[str] | None = None,
        format: str = "auto",
        allow_urls: bool = False,
    ) -> None:
        self.path = Path(path)
        root = None if image_root is None else Path(image_root)
        self.rows: RowFile = open_rows(self.path, root)
        first = [row for _, _, row in itertools.islice(self.rows.rows(), FIRST_ROWS)]
        if not first:
            raise UserError(f"{path}: empty data set; it needs at least one row")
        self.format: Format = find_format(first, format, str(path))
        remote = RemoteImages(store) if allow_urls else None
        self.images = Images(store, self.path.parent if root is None else root, remote)

    def content(self, number: int, row: dict[str, Any]) -> tuple[str, Content]:
        """Name of the sample of row `number` and what the row holds; no image is opened."""
        try:
            content = self.format.read(row)
        except RecursionError:
            raise UserError("the row is nested too deeply") from None
        for reference in content.images:
            self.images.check(reference)
        if content.id is None:
            return f"{self.path.stem}-{number}", content
        return f"{content.id}#{number}" if content.id_repeats else content.id, content

    def sample(self, name: str, content: Content) -> Sample:
        """The sample, every image decoded once and put into the store."""
        provenance = dict(content.provenance)
        if content.id_repeats and content.id is not None:
            provenance = {"id": content.id, **provenance}
        return Sample(
            id=name,
            prompt=content.prompt,
            images=tuple(self.images.put(item, i) for i, item in enumerate(content.images, 1)),
            kind=content.kind,
            truth=content.truth,
            chosen=content.chosen,
            rejected=content.rejected,
            candidates=content.candidates,
            is_tie=content.is_tie,
            margin=content.margin,
            provenance=provenance,
        )

    def stream(self, tally: Tally) -> Iterator[Sample | Dropped]:
        """One after the other, counted in `tally`."""
        for number, _, row in self.rows.rows():
            item: Sample | Dropped
            try:
                name, content = self.content(number, row)
                item = self.sample(name, content)
                tally.add(name, content)
            except UserError as error:
                item = tally.drop(number, error)
            yield item

    def describe(self, tally: Tally) -> str:
        """One line: the format that was detected and what was found."""
        order = ("chosen", "rejected", "candidates", "critiques", "ties", "margin", "truth")
        found = ", ".join(name for name in order if name in tally.columns) or "no answers"
        return (
            f"{self.path.name}: {self.format.title} {self.rows.kind}, {tally.samples} samples "
            f"({tally.with_images} with images, {len(tally.images)} different images), "
            f"prompts with {found}; {tally.num_dropped} rows dropped"
        )


def stream_samples(
    path: str | os.PathLike[str],
    store: ImageStore,
    *,
    image_root: str | os.PathLike[str] | None = None,
    format: str = "auto",
    tally: Tally | None = None,
) -> Iterator[Sample | Dropped]:
    """Every row of a data file as a sample, its images in `store`, or as why it is not used.

    Memory grows by the fingerprint of a row's id and images, 200 bytes a row, and no more. What
    was found is counted in `tally`; whether too much was dropped is for the caller to say.
    """
    file = SampleFile(path, store, image_root=image_root, format=format)
    return file.stream(Tally() if tally is None else tally)


def load_samples(
    path: str | os.PathLike[str],
    store: ImageStore,
    *,
    image_root: str | os.PathLike[str] | None = None,
    format: str = "auto",
    limit: int | None = None,
    max_dropped: float = MAX_DROPPED,
) -> LoadedData:
    """All samples of a data file, every image decoded once and put into `store`.

    `limit` stops after that many usable rows. Raises `UserError` for what is wrong with the file,
    also for a larger share of bad rows than `max_dropped`.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it counts rows and starts at 1")
    file = SampleFile(path, store, image_root=image_root, format=format)
    tally = Tally()
    samples: list[Sample] = []
    for item in file.stream(tally):
        if isinstance(item, Sample):
            samples.append(item)
        if len(samples) == limit:
            break
    tally.check(file.path, max_dropped)
    return LoadedData(
        samples=tuple(samples), dropped=tuple(tally.dropped), description=file.describe(tally)
    )


class Images:
    """Image references to hashes; a path that rows close together share is decoded once. Without
    `remote` a URL is refused.
    """

    def __init__(self, store: ImageStore, root: Path, remote: RemoteImages | None = None) -> None:
        self.store, self.remote = store, remote
        self.root = os.path.normpath(root.absolute())
        self._prefix = self.root.rstrip(os.sep) + os.sep
        self._hashes: OrderedDict[str, str] = OrderedDict()

    def check(self, reference: str | bytes) -> None:
        """Raises `UserError` for a path that leaves the folder or is no file; opens nothing."""
        if isinstance(reference, str) and is_url(reference):
            self._remote(reference).check(reference)
        elif isinstance(reference, str) and not os.path.isfile(self._inside(reference)):  # noqa: PTH113
            raise UserError(f"{self._inside(reference)}: no such image file")

    def put(self, reference: str | bytes, position: int) -> str:
        """The hash under which the store has the image of this path or of these bytes."""
        if isinstance(reference, bytes):
            return self.store.put_bytes(reference, f"image {position} (bytes)")
        if reference not in self._hashes:
            if is_url(reference):
                self._hashes[reference] = self._remote(reference).put(reference)
            else:
                self._hashes[reference] = self.store.put_file(self._inside(reference))
            if len(self._hashes) > CACHED_HASHES:
                self._hashes.popitem(last=False)
        return self._hashes[reference]

    def _remote(self, reference: str) -> RemoteImages:
        if self.remote is None or reference.startswith("data:"):
            raise UserError(
                f"image {reference[:80]!r} is a URL; download it and give its path"
                + ("" if reference.startswith("data:") else ", or set data.allow_urls=true")
            )
        return self.remote

    def _inside(self, reference: str) -> str:
        # By its letters, not resolved: a link inside the folder is its owner's choice. As text,
        # because this is done for every row and paths as objects take four times as long.
        path = os.path.normpath(os.path.join(self.root, reference))  # noqa: PTH118
        if not path.startswith(self._prefix) or "\0" in reference:
            raise UserError(
                f"image path {reference!r} leaves {self.root}; move the file there or set the "
                "image root"
            )
        return path
