"""Benchmarks by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainers.benchmarks.amber import Amber
from trainers.benchmarks.chair import Chair
from trainers.benchmarks.mmhal import MMHal
from trainers.benchmarks.object_halbench import ObjectHalBench
from trainers.benchmarks.pope import Pope
from trainers.benchmarks.questions import Benchmark, Options

BENCHMARKS: dict[str, Callable[[Path, Options], Benchmark]] = {
    "pope": Pope,
    "chair": Chair,
    "amber": Amber,
    "object-halbench": ObjectHalBench,
    "mmhal": MMHal,
}
