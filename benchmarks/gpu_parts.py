"""The parts of `benchmarks.gpu`, each run as a process of its own.

    python -m benchmarks.gpu_parts PART SPEC.json CELLS.jsonl

Cells are appended as they are done, so that a part which is cut leaves what it has.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.offline import go_offline

Cells = Iterator[dict[str, Any]]


def build(spec: dict[str, Any]) -> Cells:
    """Random weights in bfloat16, made on the card where there is one, and a processor."""
    import shutil

    import torch

    from cluster.bench_models import find_model

    target = Path(spec["folder"])
    target.parent.mkdir(exist_ok=True)
    model = find_model(spec["source"], target.parent)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model.build(torch.float32 if spec["tiny"] else torch.bfloat16)
    shutil.move(str(model.folder), target)
    yield {"part": "build", "parameters": model.architecture.num_parameters}


def engine(spec: dict[str, Any]) -> Cells:
    """VLLM and the trainer's module on the same answers."""
    from benchmarks.engine_part import measure

    yield {"part": "engine", "dtype": spec["dtype"], **measure(spec)}


def step(spec: dict[str, Any]) -> Cells:
    """A training step of each method, all weights and adapters."""
    from dataclasses import asdict

    import torch

    from benchmarks.flops import Work, step_flops, utilisation
    from benchmarks.shapes import image_tokens
    from cluster.bench import Cell, Load, bench_memory
    from cluster.bench_plan import Shortage, total
    from cluster.planner.architectures import load_architecture

    on_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    load = Load(batch=4, sequence=16) if spec["tiny"] else Load(batch=8, sequence=256)
    load = Load(batch=load.batch, sequence=load.sequence, bf16=not spec["tiny"])
    shape = load_architecture(spec["folder"])
    images = image_tokens(spec["folder"])
    for regime in ("full", "lora"):
        for method in spec["methods"]:
            (cell,) = bench_memory([spec["folder"]], [method], load, [regime])
            row: dict[str, Any] = {"part": "step", "method": method, "regime": regime}
            if isinstance(cell, Shortage):
                yield {
                    **row,
                    "fits": False,
                    "planned": total(cell.planned),
                    "needed": cell.needed,
                    "free": cell.free,
                }
                continue
            assert isinstance(cell, Cell)
            tokens = cell.tokens_per_second * cell.seconds_per_step
            rows = load.batch if method == "ppo" else 2 * (load.batch // 2)
            work = Work((int(tokens / rows),) * rows, rows * load.sequence, rows * images)
            trained = 2 if method == "ppo" else 1
            flops = trained * step_flops(shape, work, lora=regime == "lora")
            yield {
                **row,
                "fits": True,
                "measured": cell.peak,
                "planned": total(cell.planned),
                "copies": {copy: sum(kinds.values()) for copy, kinds in cell.measured.items()},
                "seconds": cell.seconds_per_step,
                "tokens_per_second": cell.tokens_per_second,
                "mfu": utilisation(flops, cell.seconds_per_step, name),
                "load": asdict(load),
            }


def whole_round(spec: dict[str, Any]) -> Cells:
    """One round of each method by the command line, on one card."""
    from benchmarks.round_part import measure

    for method in spec["methods"]:
        yield {"part": "round", "method": method, **measure(spec, method)}


PARTS = {"build": build, "engine": engine, "step": step, "round": whole_round}


def main() -> None:
    """Run one part."""
    part, given, found = sys.argv[1:]
    go_offline()
    spec = json.loads(Path(given).read_text(encoding="utf-8"))
    with Path(found).open("a", encoding="utf-8") as file:
        for cell in PARTS[part](spec):
            file.write(json.dumps({"model": spec["model"], **cell}) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
