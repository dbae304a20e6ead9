"""`quartet data`: its arguments, without a heavy import."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from trainers.data.formats.names import FORMAT_NAMES

TARGETS = ("trl", "msgpack")


def add_options(data: argparse.ArgumentParser, count: Callable[[str], int]) -> None:
    """Add `inspect` and `convert` with their arguments; `count` reads a number from 1."""
    verbs = data.add_subparsers(dest="what", required=True, metavar="WHAT")
    inspect = verbs.add_parser(
        "inspect",
        help="counts, lengths, and a few samples as the model gets them",
        allow_abbrev=False,
    )
    _add_common(inspect)
    inspect.add_argument("--model", help="folder whose processor makes the tokens (built-in)")
    inspect.add_argument("-n", type=count, default=3, help="samples that are shown (3)")
    inspect.add_argument(
        "--max-model-len", type=count, default=384, help="as rollout.max_model_len (384)"
    )
    inspect.add_argument("--max-tokens", type=count, default=64, help="as rollout.max_tokens (64)")
    inspect.add_argument("--html", metavar="OUT", help="also write a page with the pictures")
    convert = verbs.add_parser(
        "convert",
        help="write TRL parquet with the images inside, or records with images beside",
        allow_abbrev=False,
    )
    _add_common(convert)
    convert.add_argument("out", metavar="OUT", help=".parquet or .msgpack")
    convert.add_argument("--to", choices=TARGETS, help="told from the suffix of OUT")
    convert.add_argument(
        "--max-dropped-share",
        type=_share,
        default=0.05,
        help="more unusable rows than this write nothing (0.05)",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help=".jsonl, .json, .parquet or .msgpack")
    parser.add_argument("--format", choices=FORMAT_NAMES, default="auto", help="of the rows (auto)")
    parser.add_argument("--image-root", help="folder of the image paths (the file's own)")
    parser.add_argument("--allow-urls", action="store_true", help="fetch images that are URLs")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to below 1")
    return share
