"""What a resumed comparison need not do again: its starting points and its finished arms."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from cluster.config import CompareConfig
from trainers.comparison import (
    CurvePoint,
    Evaluated,
    MethodResult,
    load,
    write_atomic,
)
from trainers.json_files import load_as

FILE = "captions.json"
"""Held-out captions by model, for the gallery, and the base's point of the curves."""


class Kept(BaseModel):
    """The whole of the file."""

    model_config = ConfigDict(extra="forbid")

    start_point: CurvePoint
    captions: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Finished:
    """What an earlier part of the comparison has measured."""

    base: Evaluated
    honest: Evaluated | None
    methods: dict[str, MethodResult]
    """Arms that went through all their rounds and were evaluated."""
    captions: dict[str, list[str]]
    start_point: CurvePoint


def write_captions(
    folder: Path, captions: dict[str, list[str]], start_point: CurvePoint | None
) -> None:
    """Keep what `compare.json` has no place for, until the comparison is done."""
    point = None if start_point is None else start_point.model_dump()
    write_atomic(folder / FILE, json.dumps({"start_point": point, "captions": captions}) + "\n")


def read_finished(folder: Path, config: CompareConfig) -> Finished | None:
    """What is finished in a comparison's folder; None if it did not come as far as its first arm.

    Raises:
        UserError: its files are damaged; names one.
    """
    if not (folder / "compare.json").is_file() or not (folder / FILE).is_file():
        return None
    comparison = load(folder / "compare.json")
    kept = load_as(Kept, folder / FILE, "remove it to evaluate anew")
    methods = {
        name: result
        for name, result in comparison.arms()
        if name in kept.captions
        and result.failure is None
        and result.curve
        and result.curve[-1].round == config.arm(name).rounds
    }
    return Finished(comparison.base, comparison.honest, methods, kept.captions, kept.start_point)
