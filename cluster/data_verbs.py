"""`quartet data`: look into a data file, or write it in another form."""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.data.convert import write_records, write_trl
from trainers.data.datasets import SampleFile
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.records import Sample
from trainers.data.show_text import visible
from trainers.data.tally import Tally

SUFFIXES = {"trl": ".parquet", "msgpack": ".msgpack"}
MAX_REASONS = 8


def run(arguments: argparse.Namespace) -> int:
    """The verb that `quartet data` was given."""
    if arguments.what == "convert":
        return convert(arguments)
    from cluster.inspect_data import inspect

    return inspect(arguments)


def convert(arguments: argparse.Namespace) -> int:
    """Write `arguments.file` as `arguments.out`; a file that is there already is left alone."""
    out = Path(arguments.out)
    to = _target(out, arguments.to)
    if out.exists():
        raise UserError(f"{out}: exists; remove it or give another name")
    tally = Tally()
    with _store(out, to) as store:
        file = SampleFile(
            arguments.file,
            store,
            image_root=arguments.image_root,
            format=arguments.format,
            allow_urls=arguments.allow_urls,
        )
        samples = _usable(file, tally, arguments.max_dropped_share)
        if to == "trl":
            number = write_trl(out, samples, store)
        else:
            number = write_records(out, samples)
        print(visible(file.describe(tally)))
        print_dropped(tally)
        beside = "" if to == "trl" else f", images in {store.root}"
        print(f"{out}: {number} samples, {out.stat().st_size} bytes{beside}")
    return 0


def _usable(file: SampleFile, tally: Tally, max_dropped: float) -> Iterator[Sample]:
    """The samples; at the end, and so before the new file takes its name, what was dropped."""
    for item in file.stream(tally):
        if isinstance(item, Sample):
            yield item
    tally.check(file.path, max_dropped)


@contextmanager
def _store(out: Path, to: str) -> Iterator[ImageStore]:
    """Records keep their images in the folder `images` beside them; parquet has them inside."""
    if to == "msgpack":
        yield ImageStore(out.parent / "images")
        return
    with tempfile.TemporaryDirectory(prefix="quartet-images-") as folder:
        yield ImageStore(folder)


def _target(out: Path, to: str | None) -> str:
    told = next((name for name, suffix in SUFFIXES.items() if suffix == out.suffix.lower()), None)
    if told is None or to not in (None, told):
        expected = " or ".join([SUFFIXES[to]] if to else SUFFIXES.values())
        raise UserError(f"{out}: the suffix is {out.suffix!r}; use {expected}")
    return told


def print_dropped(tally: Tally) -> None:
    """The reasons of dropped rows, the most frequent first."""
    reasons = Counter(item.reason for item in tally.dropped)
    rows = {item.reason: item.row for item in reversed(tally.dropped)}
    for reason, number in reasons.most_common(MAX_REASONS):
        times = f", {number} times" if number > 1 else ""
        print(f"  dropped: row {rows[reason]}{times}: {visible(reason)}")
    shown = sum(number for _, number in reasons.most_common(MAX_REASONS))
    if tally.num_dropped > shown:
        print(f"  dropped: {tally.num_dropped - shown} more")
