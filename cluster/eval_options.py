"""The switches of `quartet eval`, and what of them goes together. No heavy import."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from trainers.data.errors import UserError

NAMES = ("pope", "chair", "amber", "object-halbench", "mmhal", "rewardbench")
JUDGED = ("mmhal", "rewardbench")
EPILOG = """
without --benchmark: CHAIR and POPE on held-out scenes of the built-in drawn world
benchmarks (files, sources and definitions: docs/benchmarks.md; nothing is downloaded):
  pope             "Is there a dog in the image?", three splits
  chair            descriptions of COCO images
  amber            descriptions and yes/no questions
  object-halbench  descriptions of COCO images, without extraction by a language model
  mmhal            96 open questions; needs --judge
  rewardbench      MM-RLHF's pairs, to be ordered by --judge; no model answers anything
settings: --rollout.max_model_len 2048, --train.bf16 true, --seed 1, --output DIR ...
"""
OWN = (
    "--model", "--scenes", "--json", "--benchmark", "--data", "--split", "--limit", "--words",
    "--prompt", "--max-tokens", "--judge", "--best-of", "--reference", "--calibrate",
)  # fmt: skip
"""What is not a setting."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the switches to the parser of `eval`."""
    add = parser.add_argument
    add("model_folder", nargs="?", metavar="MODEL", help="VLM folder (default: built-in base)")
    add("--model", help="the same, as an option")
    add("--scenes", type=count, help="held-out drawn scenes (500)")
    add("--json", action="store_true", help="print JSON only")
    add("--benchmark", choices=NAMES)
    add("--data", help="folder with the benchmark's own files")
    add("--split", help="one part of the benchmark, such as POPE's adversarial")
    add("--limit", type=count, help="the first N questions of each part")
    add("--words", help="original, wordnet or own: how text becomes words (original)")
    add("--prompt", help="CHAIR: what to ask instead of 'Please describe this image in detail.'")
    add("--max-tokens", type=count, help="longest answer, in place of the benchmark's own")
    add("--judge", help="critique model's folder or module:function, for mmhal and rewardbench")
    add("--best-of", type=count, metavar="N", help="RLAIF-V's self-feedback: best of N samples")
    add("--reference", help="with --best-of: the model that the evaluated one was trained from")
    add(
        "--calibrate",
        nargs="?",
        const="none",
        choices=("none", "blank"),
        help="yes/no questions again without the image (none) or with a grey one (blank): "
        "are errors a bias or a misperception?",
    )


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `quartet eval` was asked for, checked to make sense together."""

    model: str | None
    benchmark: str | None
    data: Path | None
    scenes: int
    split: str | None
    limit: int | None
    words: str
    prompt: str | None
    max_tokens: int | None
    judge: str | None
    best_of: int | None
    reference: str | None
    calibrate: str | None
    as_json: bool


def request(arguments: argparse.Namespace) -> Request:
    """The parsed switches as a request.

    Raises:
        UserError: switches that do not go together; names them.
    """
    a = arguments
    if a.model_folder is not None and a.model is not None:
        raise UserError("the model is given twice: as MODEL and as --model")
    if a.benchmark is None:
        _only_with("--benchmark", a, "data", "split", "limit", "words", "prompt", "judge")
        _only_with("--benchmark", a, "max_tokens")
    else:
        _only_with("the drawn world: leave out --benchmark", a, "scenes")
        if a.data is None:
            raise UserError(f"--benchmark {a.benchmark} needs --data, the folder with its files")
        _check_judge(a)
    if a.best_of is None:
        _only_with("--best-of", a, "reference")
    elif a.best_of < 2:
        raise UserError("--best-of 1 chooses nothing; give at least 2")
    elif a.model is None and a.model_folder is None:
        raise UserError(
            "--best-of compares a trained model with the one that its training started from: give "
            "the trained one as MODEL"
        )
    elif a.reference is None and a.benchmark is not None:
        raise UserError(
            "--best-of compares with the model that training started from: give --reference"
        )
    return Request(
        model=a.model or a.model_folder,
        benchmark=a.benchmark,
        data=None if a.data is None else Path(a.data),
        scenes=a.scenes or 500,
        split=a.split,
        limit=a.limit,
        words=a.words or "original",
        prompt=a.prompt,
        max_tokens=a.max_tokens,
        judge=a.judge,
        best_of=a.best_of,
        reference=a.reference,
        calibrate=a.calibrate,
        as_json=a.json,
    )


def _check_judge(a: argparse.Namespace) -> None:
    if a.benchmark in JUDGED and a.judge is None:
        raise UserError(
            f"--benchmark {a.benchmark} needs --judge (a critique model's folder or "
            "module:function): its answers cannot be scored without one, and its numbers are "
            "comparable only within one judge"
        )
    if a.benchmark not in JUDGED and a.judge is not None:
        raise UserError(f"--judge: {a.benchmark} is scored without one")
    if a.benchmark == "rewardbench":
        given = [a.model_folder or a.model, a.best_of, a.calibrate, a.split, a.words, a.prompt]
        if any(value is not None for value in (*given, a.max_tokens)):
            raise UserError("rewardbench takes --data, --judge and --limit only: it tests a judge")


def _only_with(what: str, a: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(a, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} goes with {what}")
