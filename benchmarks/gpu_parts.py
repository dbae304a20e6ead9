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


def warm(_: dict[str, Any]) -> Cells:
    """What DeepSpeed compiles, so that no measured step waits for it."""
    import time

    import torch

    from actors.extensions import load_adam_extension, load_extensions

    begun = time.monotonic()
    load_extensions()
    if torch.cuda.is_available():
        load_adam_extension()
    yield {"part": "warm", "seconds": time.monotonic() - begun}


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
    from benchmarks.step_part import measure

    yield from measure(spec)


def whole_round(spec: dict[str, Any]) -> Cells:
    """One round of each method by the command line, on one card."""
    from benchmarks.round_part import measure

    for method in spec["methods"]:
        yield {"part": "round", "method": method, **measure(spec, method)}


PARTS = {"warm": warm, "build": build, "engine": engine, "step": step, "round": whole_round}


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
