"""What a step of ours is made of: its data, and DeepSpeed's engine against plain torch.

    python -m benchmarks.step_parts

The models and rows of `benchmarks.trl_side_by_side`, one process, all sides in turn, one step each:

    whole   what a run does, with rows and images processed anew
    data    of it, rows encoded and collated
    engine  of it, DeepSpeed: forward, loss, backward, clipping and AdamW on a batch that is made
    torch   the same module, loss, clipping and AdamW by torch alone, on the same batch

Engine and torch start from the same weights: their last losses say that they did the same.
DPO's reference is not scored here. Core-seconds, on a GPU seconds; medians.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from actors.train import TrainActor
from benchmarks.our_step import RATE, SKIPPED, groups_of, method_of, new_processing, now, spec_of
from benchmarks.result import origin, parser, write
from benchmarks.trl_side_by_side import specification
from trainers.batch import Batch, Group, collate, encode_row
from trainers.method import Method

MODELS = ("drawn", "wide-head")


class Sides:
    """Three copies of one model, and a step on each."""

    def __init__(self, given: dict[str, Any], task: str):
        self.given, self.spec = given, spec_of(given)
        self.method: Method = method_of(given, task)
        self.whole_actor, self.engine_actor = TrainActor(), TrainActor()
        for actor in (self.whole_actor, self.engine_actor):
            actor.load(self.spec)
        self.groups: list[Group] = groups_of(given, task, self.engine_actor.processing)
        for row in (row for group in self.groups for row in group if task == "dpo"):
            row.tokens["ref_logprobs"] = np.full(len(row.response_ids or ()), -2.0, np.float32)
        self.method.prepare(self.groups)
        self.module = self.engine_actor._build(self.spec, torch.float32, None)
        self.module.to(self.engine_actor.device).train()
        self.adam = torch.optim.AdamW(
            self.module.parameters(),
            lr=RATE,
            betas=self.spec.betas,
            weight_decay=self.spec.weight_decay,
        )
        self.renew()
        self.batch = self.data().to(self.engine_actor.device)
        self.losses: dict[str, list[float]] = {"engine": [], "torch": []}

    def renew(self) -> None:
        """Forget images and prompts; before a step, and not timed."""
        self.processing = self.whole_actor.processing = new_processing(self.given)

    def data(self) -> Batch:
        """The batch, of rows and images that are processed anew."""
        processing = self.processing
        rows = [row for group in self.groups for row in group]
        return collate(rows, [encode_row(row, processing) for row in rows], processing)

    def whole(self) -> None:
        """As `benchmarks.our_step`."""
        self.whole_actor.train(self.groups, self.method, self.method.optimisation("policy"), seed=0)

    def engine(self) -> None:
        """DeepSpeed's."""
        engine = self.engine_actor._engine
        for group in engine.optimizer.param_groups:
            group["lr"] = RATE
        engine.set_gradient_accumulation_boundary(True)
        loss = self._loss("engine", engine(self.batch))
        engine.backward(loss)
        engine.step()

    def plain(self) -> None:
        """Torch's own."""
        loss = self._loss("torch", self.module(self.batch))
        loss.backward()
        clip_grad_norm_(self.module.parameters(), self.spec.gradient_clip)
        self.adam.step()
        self.adam.zero_grad()

    def _loss(self, side: str, outputs: Any) -> torch.Tensor:
        totals = self.method.totals(self.batch)
        loss, _ = self.method.loss("policy", outputs, self.batch, totals)
        self.losses[side].append(float(loss.detach()))
        return loss

    def unload(self) -> None:
        """Free the engines."""
        self.whole_actor.unload()
        self.engine_actor.unload()


def measure(given: dict[str, Any], task: str, turns: int) -> dict[str, Any]:
    """Medians of each part, and what the losses of the first and the last step were."""
    sides = Sides(given, task)
    steps = {
        "whole": sides.whole,
        "data": sides.data,
        "engine": sides.engine,
        "torch": sides.plain,
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(SKIPPED + turns):
        for name in sorted(steps, reverse=bool(turn % 2)):
            sides.renew()
            begun = now()
            steps[name]()
            ended = now()
            if turn >= SKIPPED:
                times[name].append((ended[0] - begun[0], ended[1] - begun[1]))
    sides.unload()
    return {
        "seconds": {name: median(wall for wall, _ in found) for name, found in times.items()},
        "core_seconds": {name: median(core for _, core in found) for name, found in times.items()},
        "losses": {name: [found[0], found[-1]] for name, found in sides.losses.items()},
    }


def main() -> None:
    """Measure and write."""
    asked = parser(__doc__, "step_parts_cpu.json")
    asked.add_argument("--models", nargs="+", default=list(MODELS))
    asked.add_argument("--pairs", type=int, default=8, help="DPO pairs, and SFT rows, of a step")
    asked.add_argument("--sequence", type=int, default=48, help="words of an answer")
    asked.add_argument("--turns", type=int, default=15, help="timed steps of each side")
    options = asked.parse_args()
    cells: list[dict[str, Any]] = []
    result = {
        **origin("benchmarks.step_parts", 1),
        "clock": "seconds" if torch.cuda.is_available() else "core_seconds",
        "load": {name: getattr(options, name) for name in ("pairs", "sequence", "turns")},
        "cells": cells,
    }
    connected = TrainActor(num_threads=1)
    connected.connect(*connected.address())
    with tempfile.TemporaryDirectory(prefix="quartet-parts-") as folder:
        for name in options.models:
            given = specification(name, Path(folder), pairs=options.pairs, words=options.sequence)
            for task in ("dpo", "sft"):
                cells.append({"model": name, "task": task, **measure(given, task, options.turns)})
                print(cells[-1], flush=True)
                write(options.output, result)


if __name__ == "__main__":
    main()
