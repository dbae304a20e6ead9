"""The same DPO and SFT steps by us and by TRL, each in its own environment, turn by turn.

    python -m benchmarks.trl_side_by_side

Same model folder, images, texts, batch, float32, AdamW, clipping, one thread; dropout and gradient
checkpointing off. A step is timed whole: images and texts are processed anew, DPO's reference
scores the batch, forward, backward, optimiser. Processes alternate, and the median over repeats is
kept. Memory on both sides is what `actors/tracker.py` counts in the second step: the peak of all tensor
storages, the reference's weights included. TRL's process runs twice: as it comes, and with malloc told to
keep freed memory, as our actors tell it (`actors/process_settings.py`).

TRL (1.16) is installed with pip into `--venv` if it is not there. Seconds are core-seconds of the process,
since a machine's other work must not decide; on a GPU they are seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from actors.process_settings import KEPT_BYTES
from benchmarks.result import origin, parser, write
from benchmarks.shapes import WIDE_HEAD, miniature
from cluster.bench_models import find_model
from trainers.data.drawn_model import WORDS
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.data.scenes import scene_samples

TRL = "trl==1.16.*"
OURS = [["dpo", "equal"], ["sft", "equal"]]
THEIRS = [
    ["dpo", "equal"],
    ["dpo", "full_logits"],
    ["sft", "equal"],
    ["sft", "full_logits"],
]
"""`equal`: TRL's own chunked head, as it comes; `full_logits`: that head replaced by what it stands
in for, all logits at once. Of ours there is one variant."""
KEPT = {name: str(KEPT_BYTES) for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")}
"""What our processes tell malloc, for TRL's to be told it, too."""


def environment(folder: Path) -> Path:
    """The Python of an environment with TRL, made if it is not there."""
    python = folder / "bin" / "python"
    if not python.is_file():
        print(f"installing {TRL} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        torch_version = torch.__version__.split("+")[0]
        packages = [f"torch=={torch_version}", TRL, "pillow"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    return python


def specification(name: str, folder: Path, *, pairs: int, words: int) -> dict[str, Any]:
    """A model and its rows, of answers of so many words, for both sides."""
    path = miniature("llava-1.5-7b", WIDE_HEAD, folder) if name == "wide-head" else name
    model = find_model(str(path), folder)
    model.build(torch.float32)
    store = ImageStore(folder / "images")
    vocabulary = Processing(model.folder, store).tokenizer.get_vocab()
    known = [w for w in vocabulary if w.startswith("w") or w in WORDS]
    rng = random.Random(0)
    rows = [
        {
            "hash": sample.images[0],
            "image": str(store.path(sample.images[0])),
            "question": sample.prompt[0].text,
            "chosen": " ".join(rng.choices(known, k=words)),
            "rejected": " ".join(rng.choices(known, k=words)),
        }
        for sample in scene_samples(0, pairs, store.put_image)
    ]
    return {
        "folder": str(model.folder),
        "images": str(store.root),
        "scratch": str(folder / "scratch"),
        "rows": rows,
        "threads": 1,
    }


def half(
    command: list[str],
    spec: dict[str, Any],
    cells: list[list[str]],
    folder: Path,
    more: Mapping[str, str],
) -> Any:
    """One process's result, with `more` in its environment."""
    given, answered = folder / "spec.json", folder / "result.json"
    given.write_text(json.dumps({**spec, "cells": cells}), encoding="utf-8")
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(given), str(answered)],
        env={**os.environ, **offline, **more},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(answered.read_text(encoding="utf-8"))


def merged(results: list[Any]) -> list[dict[str, Any]]:
    """Cells with the medians over repeats."""
    cells = []
    for same in zip(*(result["cells"] for result in results), strict=True):
        cell = dict(same[0])
        for key in ("seconds", "core_seconds", "peak"):
            cell[key] = statistics.median(each[key] for each in same)
        used = "seconds" if torch.cuda.is_available() else "core_seconds"
        cell["tokens_per_second"] = cell["tokens"] / cell[used]
        cells.append(cell)
    return cells


def compare(name: str, python: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One model: both halves in turn."""
    root = Path(__file__).parents[1]
    theirs = [str(python), str(root / "benchmarks" / "trl_step.py")]
    sides: dict[str, tuple[list[str], list[list[str]], Mapping[str, str]]] = {
        "ours": ([sys.executable, "-m", "benchmarks.our_step"], OURS, {}),
        "trl": (theirs, THEIRS, {}),
        "trl_kept": (theirs, THEIRS, KEPT),
    }
    results: dict[str, list[Any]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory(prefix="quartet-trl-") as temporary:
        folder = Path(temporary)
        spec = specification(name, folder, pairs=arguments.pairs, words=arguments.sequence)
        spec["steps"] = arguments.steps
        for _ in range(arguments.repeats):
            for side, (command, cells, more) in sides.items():
                results[side].append(half(command, spec, cells, folder, more))
                print(f"{name}: {side} done", flush=True)
    return {
        "model": name,
        "versions": {side: results[side][0]["versions"] for side in ("ours", "trl")},
        "cells": {side: merged(found) for side, found in results.items()},
    }


def main() -> None:
    """Compare and write the JSON."""
    asked = parser(__doc__, "trl_cpu.json")
    asked.add_argument("--venv", type=Path, default=Path("~/.cache/quartet/trl").expanduser())
    asked.add_argument("--models", nargs="+", default=["drawn", "wide-head"])
    asked.add_argument("--pairs", type=int, default=8, help="DPO pairs, and SFT rows, of a step")
    asked.add_argument("--sequence", type=int, default=48, help="words of an answer")
    asked.add_argument("--steps", type=int, default=5, help="timed steps of a process")
    asked.add_argument("--repeats", type=int, default=3)
    arguments = asked.parse_args()
    models: list[dict[str, Any]] = []
    result = {
        **origin("benchmarks.trl_side_by_side", 1),
        "clock": "seconds" if torch.cuda.is_available() else "core-seconds",
        "load": {name: getattr(arguments, name) for name in ("pairs", "sequence", "steps")},
        "models": models,
    }
    python = environment(arguments.venv)
    for name in arguments.models:
        models.append(compare(name, python, arguments))
        write(arguments.output, result)


if __name__ == "__main__":
    main()
