"""What budgets of tokens, packing and shared images save of an optimiser step, against the same step without.

    python -m benchmarks.training --rows 8     # minutes on one free core

All sides live in one process and take their steps in turn, on the same rows, so that a ratio is of one run; the figure is
the median of the turns' ratios. Without a GPU, seconds are the process's own CPU seconds: what else the machine
does, does not count. Answers have 8 to 256 random tokens, so that padding costs something.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from actors.train import TrainActor
from actors.train_spec import TrainSpec
from benchmarks.result import origin, parser, write
from tests.families.builders import qwen2_5_vl
from trainers.batch import Group, Row, encode_row
from trainers.config import DPOConfig, SFTConfig
from trainers.data.drawn_model import build_model, build_processor, save_pretrained_folder
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.data.records import Sample
from trainers.data.scenes import scene_samples
from trainers.method import Method, Optimisation
from trainers.registry import make_method

MODELS: dict[str, Callable[[Path], Any]] = {
    "drawn (LLaVA)": lambda folder: save_pretrained_folder(
        build_model(0), build_processor(), folder
    ),
    "tiny Qwen2.5-VL": qwen2_5_vl,
}
SHORTEST, LONGEST = 8, 256
WARM_UP = 2
"""Steps before the timed ones: the first makes Adam's states, in the second memory is counted."""


def switches(budget: int) -> dict[str, dict[str, Any]]:
    """What is switched on, alone and together; the first is nothing."""
    tokens, packing, share = (
        {"micro_batch_tokens": budget},
        {"packing": True},
        {"share_images": True},
    )
    return {
        "off": {},
        "token budget": tokens,
        "packing": packing,
        "shared images": share,
        "all three": tokens | packing | share,
    }


def answers_of(processing: Processing, samples: list[Sample], each: int) -> list[list[Row]]:
    """Random answers to every sample, of lengths spread evenly on a logarithmic scale."""
    rng = random.Random(0)
    banned = {*processing.banned_ids(), processing.eos_id}
    free = [token for token in range(processing.vocab_size) if token not in banned]
    span = math.log(LONGEST / SHORTEST)
    last = len(samples) * each - 1
    lengths = [round(SHORTEST * math.exp(span * i / last)) for i in range(last + 1)]
    rng.shuffle(lengths)
    return [
        [
            Row.of_response(
                sample,
                (*rng.choices(free, k=lengths.pop() - 1), processing.eos_id),
                f"{sample.id}/{n}",
                margin=1.0,
            )
            for n in range(each)
        ]
        for sample in samples
    ]


def workload(
    name: str, rows: int, processing: Processing, store: ImageStore
) -> tuple[Method, list[Group]]:
    """`pairs`: each of an image of its own, by DPO. `answers`: 8 to each prompt, every one a group by itself."""
    if name == "pairs":
        samples = list(scene_samples(0, rows // 2, store.put_image))
        pairs: list[Group] = [tuple(pair) for pair in answers_of(processing, samples, 2)]
        for row in (row for pair in pairs for row in pair):
            row.tokens["ref_logprobs"] = np.full(len(row.response_ids or ()), -2.0, np.float32)
        return make_method(DPOConfig()), pairs
    samples = list(scene_samples(0, rows // 8, store.put_image))
    answers = answers_of(processing, samples, 8)
    return make_method(SFTConfig()), [(row,) for group in answers for row in group]


def clock() -> float:
    """Seconds of work: the process's own, or with a GPU those that pass until it is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def compare(
    folder: Path, store: ImageStore, load: str, *, rows: int, turns: int
) -> list[dict[str, Any]]:
    """Every switch against none of them."""
    processing = Processing(folder, store)
    method, groups = workload(load, rows, processing, store)
    lengths = [len(encode_row(row, processing).input_ids) for group in groups for row in group]
    # As many tokens as the largest forward has without: what is saved is not bought with memory.
    per_forward = rows // 2
    budget = per_forward * max(lengths)
    plain = TrainSpec(
        role="policy",
        model_dir=str(folder),
        image_root=str(store.root),
        micro_batch_size=per_forward,
    )
    optimisation = Optimisation(learning_rate=1e-4, epochs=1, minibatch_size=len(groups))
    sides = {name: TrainActor() for name in switches(budget)}
    for name, change in switches(budget).items():
        sides[name].load(replace(plain, **change))
    losses: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(WARM_UP + turns):
        for name in sorted(sides, reverse=bool(turn % 2)):
            begun = clock()
            # One seed: the same rows beside each other, or a new largest forward would be counted.
            metrics = sides[name].train(groups, method, optimisation, seed=0)
            losses.setdefault(name, metrics["loss"])
            if turn >= WARM_UP:
                seconds[name].append(clock() - begun)
    cells = []
    for name, actor in sides.items():
        ratios = [off / on for off, on in zip(seconds["off"], seconds[name], strict=True)]
        cells.append(
            {
                "switch": name,
                "ratio": median(ratios),
                "ratios": ratios,
                "seconds": median(seconds[name]),
                "tokens_per_second": sum(lengths) / median(seconds[name]),
                "peak_bytes": actor.end_phase("train").copies["policy"],
                "loss_gap": abs(losses[name] - losses["off"]),
                "budget": budget,
            }
        )
        actor.unload()
    return cells


def main() -> None:
    """Measure every switch on both models and both workloads."""
    asked = parser(__doc__, "training_cpu.json")
    asked.add_argument("--turns", type=int, default=3, help="timed steps of each side")
    asked.add_argument(
        "--rows", type=int, default=32, help="of a step, a multiple of 8; half of them a forward"
    )
    asked.add_argument("--threads", type=int, default=1)
    options = asked.parse_args()
    connected = TrainActor(num_threads=options.threads)
    connected.connect(*connected.address())
    result: dict[str, Any] = {
        **origin("benchmarks.training", options.threads),
        "threads": options.threads,
        "seconds": "wall clock" if torch.cuda.is_available() else "CPU seconds of the process",
        "rows": options.rows,
        "rows_per_forward": options.rows // 2,
        "answer_tokens": [SHORTEST, LONGEST],
        "turns": options.turns,
        "cells": [],
    }
    with tempfile.TemporaryDirectory(prefix="quartet-bench-") as name:
        store = ImageStore(Path(name) / "images")
        for model, build in MODELS.items():
            folder = Path(name) / model.split()[-1].strip("()")
            folder.mkdir()
            build(folder)
            for load in ("pairs", "answers"):
                for cell in compare(folder, store, load, rows=options.rows, turns=options.turns):
                    result["cells"].append({"model": model, "load": load, **cell})
                    said = f"x {cell['ratio']:.2f}, loss gap {cell['loss_gap']:.1e}"
                    print(f"{model}, {load}, {cell['switch']}: {said}", flush=True)
                # What was measured stays, should the rest be stopped.
                write(options.output, result)


if __name__ == "__main__":
    main()
