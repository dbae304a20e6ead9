"""`quartet data inspect`: what is in a data file, and how a model gets it."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cluster.data_verbs import print_dropped
from cluster.inspect_page import write_page
from cluster.inspect_terminal import print_sample
from trainers.data.datasets import SampleFile
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.pieces import Piece, pieces
from trainers.data.processing import Processing
from trainers.data.prompt_lengths import prompt_lengths
from trainers.data.records import Sample
from trainers.data.sample_index import SampleIndex, index_samples
from trainers.data.show_text import visible
from trainers.data.tally import Dropped, Tally

PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A sample with everything that is shown of it."""

    sample: Sample
    fields: tuple[str, ...]
    """Columns of the row that have a value."""
    pictures: tuple[Any, ...]
    """Pillow images, upright RGB."""
    tokens: tuple[tuple[str, list[Piece] | str], ...]
    """Name of the sequence, and its tokens or why it cannot be a target."""


def inspect(arguments: argparse.Namespace) -> int:
    """Print counts, lengths and samples; write the page if asked. Returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="quartet-inspect-") as folder:
        store = ImageStore(Path(folder) / "images")
        file = SampleFile(
            arguments.file,
            store,
            image_root=arguments.image_root,
            format=arguments.format,
            allow_urls=arguments.allow_urls,
        )
        tally = Tally()
        index = index_samples(file, tally, 1.0)
        description = visible(file.describe(tally))
        print(description)
        print_dropped(tally)
        if not len(index):
            raise UserError(f"{file.path}: no row can be used; see the reasons above")
        with _processor(arguments.model) as model:
            processing = Processing(model, store)
            lines = _length_lines(index, processing, arguments)
            print("\n".join(lines))
            shown = list(_shown(index, processing, arguments.n))
        console = Console(highlight=False, soft_wrap=True)
        for item in shown:
            print_sample(console, item)
        if arguments.html is not None:
            write_page(Path(arguments.html), [description, *lines], shown)
            print(f"page: {arguments.html}")
    return 0


@contextmanager
def _processor(model: str | None) -> Iterator[str]:
    """The folder of a processor: the user's, or the built-in one written for the while."""
    if model is not None:
        yield model
        return
    from transformers.utils import logging

    from trainers.data.drawn_model import build_model, build_processor, save_pretrained_folder

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="quartet-processor-") as folder:
        save_pretrained_folder(build_model(0), build_processor(), Path(folder))
        yield folder


def _length_lines(
    index: SampleIndex, processing: Processing, arguments: argparse.Namespace
) -> list[str]:
    """Percentiles of all prompts and answers, and how many prompts a run would drop."""
    prompts = np.array([length for _, length in prompt_lengths(index, processing)])
    unread = int((prompts == 0).sum())
    room = arguments.max_model_len - arguments.max_tokens
    lines = [_percentile_line("prompt", prompts[prompts > 0].tolist())]
    answers: dict[str, list[int]] = {"chosen": [], "rejected": []}
    for _, content in index.contents():
        for name, lengths in answers.items():
            text = getattr(content, name)
            if text is not None:
                encoding = processing.tokenizer.backend_tokenizer.encode(
                    text, add_special_tokens=False
                )
                lengths.append(len(encoding.ids))
    lines += [_percentile_line(name, lengths) for name, lengths in answers.items() if lengths]
    source = arguments.model or "the built-in processor; give --model for yours"
    lines.append(f"  (tokens of {source}; images expanded)")
    lines.append(
        f"  {int((prompts > room).sum())} of {len(prompts)} prompts would be dropped at "
        f"--max-model-len {arguments.max_model_len} with --max-tokens {arguments.max_tokens}; "
        "none is ever truncated"
    )
    if unread:
        lines.append(f"  {unread} have an image that cannot be decoded and would be dropped, too")
    return lines


def _percentile_line(name: str, lengths: Sequence[int]) -> str:
    if not lengths:
        return f"  {name} tokens: none"
    values = np.percentile(lengths, PERCENTILES, method="higher")
    parts = ", ".join(
        f"{'longest' if rank == 100 else f'{rank} %'} {int(value)}"
        for rank, value in zip(PERCENTILES, values, strict=True)
    )
    return f"  {name} tokens: {parts}"


def _shown(index: SampleIndex, processing: Processing, number: int) -> Iterator[Shown]:
    """Samples at even distances through the file."""
    number = min(number, len(index))
    places = [i * len(index) // number for i in range(number)]
    rows = index.file.rows.read([int(index.positions[place]) for place in places])
    for sample, row in zip(index.take(places), rows, strict=True):
        if isinstance(sample, Dropped):
            print(f"  dropped: row {sample.row}: {visible(sample.reason)}")
            continue
        sides = [(name, getattr(sample, name)) for name in ("chosen", "rejected")]
        known = [(f"prompt and {name}", text) for name, text in sides if text is not None]
        yield Shown(
            sample=sample,
            fields=tuple(sorted(str(name) for name, value in row.items() if value is not None)),
            pictures=tuple(processing.images(sample.images)),
            tokens=tuple(
                (name, _tokens(processing, sample, text))
                for name, text in known or [("prompt", None)]
            ),
        )


def _tokens(processing: Processing, sample: Sample, answer: str | None) -> list[Piece] | str:
    try:
        return pieces(processing, sample, answer)
    except ValueError as error:
        return str(error)
