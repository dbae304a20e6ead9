"""Our half of `benchmarks.trl_side_by_side`: the same steps by the actors that a run uses.

python -m benchmarks.our_step SPEC.json OUTPUT.json
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from actors.memory import module_bytes
from actors.reference import ReferenceActor
from actors.train import TrainActor
from actors.train_spec import TrainSpec
from trainers.batch import Row, collate, encode_row
from trainers.config import DPOConfig, SFTConfig
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.data.records import Sample, Turn
from trainers.method import Method
from trainers.registry import make_method

RATE = 1e-4
SKIPPED = 2
"""As the other half: the second step is the one whose memory is counted."""


def now() -> tuple[float, float]:
    """Seconds and core-seconds, once what was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def groups_of(spec: dict[str, Any], task: str, processing: Processing) -> list[tuple[Row, ...]]:
    """The rows of the specification, as the method's groups."""
    groups = []
    for number, row in enumerate(spec["rows"]):
        prompt = (Turn(role="user", text=row["question"], num_images=1),)
        sample = Sample(id=f"s{number}", prompt=prompt, images=(row["hash"],))
        sides = ("chosen", "rejected") if task == "dpo" else ("chosen",)
        group = []
        for side in sides:
            ids = processing.tokenizer(row[side], add_special_tokens=False)["input_ids"]
            response = (*ids, processing.eos_id)
            group.append(Row.of_response(sample, response, f"{number}/{side}", margin=1.0))
        groups.append(tuple(group))
    return groups


def new_processing(spec: dict[str, Any]) -> Processing:
    """One that remembers no image and no prompt, since a run rarely sees an image twice; what a
    process finds out of its model once is known.
    """
    processing = Processing(spec["folder"], ImageStore(spec["images"]))
    processing.images_are_alike()
    return processing


def spec_of(spec: dict[str, Any]) -> TrainSpec:
    """A policy whose forward has all rows of a step."""
    return TrainSpec(
        role="policy",
        model_dir=spec["folder"],
        image_root=spec["images"],
        micro_batch_size=2 * len(spec["rows"]),
    )


def method_of(spec: dict[str, Any], task: str) -> Method:
    """One optimiser step over all rows."""
    config = DPOConfig if task == "dpo" else SFTConfig
    return make_method(config(learning_rate=RATE, epochs=1, minibatch_size=len(spec["rows"])))


def run(spec: dict[str, Any], actor: TrainActor, task: str, variant: str) -> dict[str, Any]:
    """One method for a few steps, each with its data made anew, as TRL does."""
    torch.manual_seed(0)
    train, method = spec_of(spec), method_of(spec, task)
    actor.load(train)
    groups = groups_of(spec, task, actor.processing)
    rows = [row for group in groups for row in group]
    batch = collate(rows, [encode_row(row, actor.processing) for row in rows], actor.processing)
    reference = ReferenceActor()
    if task == "dpo":
        reference.load(train)

    def score() -> None:
        for row, values in zip(rows, reference.score_rows(rows), strict=True):
            row.tokens["ref_logprobs"] = values

    if task == "dpo":
        score()
    method.prepare(groups)
    times = []
    for number in range(spec["steps"] + SKIPPED):
        actor.processing, reference.processing = new_processing(spec), new_processing(spec)
        begun = now()
        if task == "dpo":
            score()
        actor.train(groups, method, method.optimisation("policy"), seed=number)
        times.append(tuple(after - before for before, after in zip(begun, now(), strict=True)))
    peak = sum(actor.end_phase("train").copies["policy"].values())
    if reference._module is not None:
        peak += module_bytes(reference._module)
    reference.unload()
    actor.unload()
    return {
        "task": task,
        "variant": variant,
        "tokens": int(batch.attention_mask_BT.sum()),
        "seconds": statistics.median(wall for wall, _ in times[SKIPPED:]),
        "core_seconds": statistics.median(core for _, core in times[SKIPPED:]),
        "peak": peak,
    }


def main() -> None:
    """Every task and variant of the specification, in its order."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    actor = TrainActor(num_threads=spec["threads"])
    actor.connect(*actor.address())
    cells = [run(spec, actor, task, variant) for task, variant in spec["cells"]]
    names = ("torch", "transformers", "deepspeed")
    result = {"versions": {name: version(name) for name in names}, "cells": cells}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
