"""A sample of a data file on the terminal: picture in half blocks, turns, tokens and mask."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.style import Style
from rich.text import Text

from trainers.data.pieces import Piece
from trainers.data.show_text import visible

if TYPE_CHECKING:
    from PIL import Image

    from cluster.inspect_data import Shown

COLUMNS, ROWS = 48, 20
"""Largest picture in characters; each shows two pixels, one above the other."""
LONGEST_FACT = 400
"""Characters of ground truth and provenance, which may hold a number for each token."""
TARGET = Style(color="green", bold=True)
DIM = Style(dim=True)


def print_sample(console: Console, shown: Shown) -> None:
    """Everything of one sample. Without colours, targets still stand in [[ ]]."""
    sample = shown.sample
    console.print(Text(f"\n--- {visible(sample.id)} ---", style="bold"))
    console.print(Text(visible(f"fields: {', '.join(shown.fields)}"), style=DIM))
    for name, picture in zip(sample.images, shown.pictures, strict=True):
        console.print(Text(f"image {picture.width}x{picture.height}, {name}"))
        if console.is_terminal and not console.no_color:
            console.print(half_blocks(picture), soft_wrap=False)
    for turn in sample.prompt:
        images = f" [{turn.num_images} image(s)]" if turn.num_images else ""
        console.print(Text(f"{turn.role}{images}: {visible(turn.text)}"))
    for label, text in facts(shown):
        console.print(Text(f"{label}: {visible(text)}"))
    for name, found in shown.tokens:
        if isinstance(found, str):
            console.print(Text(f"{name}: no tokens: {visible(found)}", style="red"))
            continue
        targets = sum(piece.is_target for piece in found)
        total = sum(piece.count for piece in found)
        console.print(Text(f"{name}: {total} tokens, {targets} of them targets in [[ ]]"))
        console.print(token_text(found))
        console.print(id_text(found))


def facts(shown: Shown) -> list[tuple[str, str]]:
    """Name and value of what a sample holds beside its prompt and images."""
    sample = shown.sample
    found = [(name, getattr(sample, name)) for name in ("chosen", "rejected", "kind")]
    lines = [(name, text) for name, text in found if text]
    if sample.is_tie:
        lines.append(("tie", "the annotators found the answers equally good"))
    if sample.margin is not None:
        lines.append(("margin", f"{sample.margin:g}"))
    for item in sample.candidates:
        score = "not scored" if item.score is None else f"score {item.score:.3g}"
        aspects = "".join(f", {name} {value:g}" for name, value in item.aspects.items())
        lines.append((f"candidate {item.label} ({score}{aspects})".replace("  ", " "), item.text))
        if item.critique:
            lines.append(("  critique", item.critique))
    for name, value in (("truth", sample.truth), ("provenance", sample.provenance)):
        if value:
            lines.append((name, textwrap.shorten(str(value), LONGEST_FACT, placeholder=" ...")))
    return lines


def token_text(found: list[Piece]) -> Text:
    """The tokens' text, runs of targets in [[ ]]."""
    text = Text()
    for is_target, run in groupby(found, key=lambda piece: piece.is_target):
        words = " ".join(_word(piece) for piece in run)
        text.append(f"[[{words}]] " if is_target else f"{words} ", TARGET if is_target else DIM)
    return text


def id_text(found: list[Piece]) -> Text:
    """The tokens' ids, those of targets in colour."""
    text = Text()
    text.append("ids ", DIM)
    for piece in found:
        times = f"x{piece.count}" if piece.count > 1 else ""
        text.append(f"{piece.token}{times} ", TARGET if piece.is_target else DIM)
    return text


def _word(piece: Piece) -> str:
    return visible(piece.text) + (f"x{piece.count}" if piece.count > 1 else "")


def half_blocks(picture: Image.Image) -> Text:
    """The picture in true colour: an upper half block for a pixel, its background for the next."""
    scale = min(COLUMNS / picture.width, 2 * ROWS / picture.height)
    width = max(1, round(picture.width * scale))
    height = max(2, 2 * round(picture.height * scale / 2))
    small = picture.resize((width, height))
    text = Text()
    for y in range(0, height, 2):
        for x in range(width):
            upper, lower = (_hex(small, x, y + row) for row in (0, 1))
            text.append("\u2580", Style(color=upper, bgcolor=lower))
        text.append("\n" if y + 2 < height else "")
    return text


def _hex(picture: Image.Image, x: int, y: int) -> str:
    red, green, blue = picture.getpixel((x, y))  # type: ignore[misc]
    return f"#{red:02x}{green:02x}{blue:02x}"
