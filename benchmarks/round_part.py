"""The round's part of `benchmarks.gpu`: `quartet train` for one round, and what its ledger says."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from trainers.ledger import read_rows

SLICED = ("--train.time_slice", "true", "--rollout.sleep", "true")
"""On one card copies and engine take turns."""


def command(spec: dict[str, Any], method: str, output: Path) -> list[str]:
    """The run: one round, a judge that needs no model, next to no evaluation."""
    small = spec["tiny"]
    options = {
        "model": spec["folder"],
        "judge": "random",
        "rounds": 1,
        "output": output,
        "rollout.num_prompts": 8 if small else 32,
        "rollout.num_rollouts_per_prompt": 2,
        "rollout.max_tokens": 16 if small else 128,
        "rollout.max_model_len": 1024 if small else 1536,
        "train.bf16": str(not small).lower(),
        "train.gradient_checkpointing": "true",
        "train.micro_batch_size": 4,
        "train.parity_tolerance": 0.1,
        "eval.num_scenes": 4,
        "eval.num_curve_scenes": 0,
        "checkpoint.every": 0,
    }
    given = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    return [sys.executable, "-m", "cluster.cli", "train", method, *given, *SLICED]


def prediction(spec: dict[str, Any], method: str) -> Any:
    """The planner's word on one card, for what `command` runs."""
    from benchmarks.fits import ANY
    from cluster.planner.architectures import load_architecture
    from cluster.planner.plan import Planner
    from cluster.planner.settings import Settings
    from trainers.config import METHODS
    from trainers.registry import make_method

    settings = Settings(
        zero_stage=0,
        bf16=not spec["tiny"],
        micro_batch_size=4,
        response_tokens=16 if spec["tiny"] else 128,
        sleep=True,
        time_slice=True,
    )
    planner = Planner(load_architecture(spec["folder"]), ANY)
    return planner.plan(make_method(METHODS[method]()), settings, 1)


def measure(spec: dict[str, Any], method: str) -> dict[str, Any]:
    """One round, or why there is none."""
    import torch

    cell: dict[str, Any] = {}
    if torch.cuda.is_available():
        plan = prediction(spec, method)
        cell["planned"] = plan.peak_bytes_per_gpu
        if plan.peak_bytes_per_gpu > torch.cuda.mem_get_info()[1]:
            return {**cell, "fits": False, "binding_phase": plan.binding_phase}
    with tempfile.TemporaryDirectory(prefix="quartet-round-") as temporary:
        line = command(spec, method, Path(temporary))
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
            return {**cell, "failure": said[-1]}
        (file,) = Path(temporary).rglob("compare.json")
        (result,) = json.loads(file.read_text(encoding="utf-8"))["methods"].values()
        rows = read_rows(file.parent / "memory" / "ledger.jsonl")
    return {
        **cell,
        "fits": True,
        "seconds_by_phase": result["seconds_by_phase"],
        "ledger": ledger_sums(rows),
    }


def ledger_sums(rows: list[Any]) -> dict[str, dict[str, int]]:
    """Phase -> bytes that copies claim, that the allocator counts beside them, that it holds back,
    and that the driver counts beside it. Of the fullest phase, all processes together.
    """
    phases: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.place != "device":
            continue
        kind = {
            "unattributed": "unattributed",
            "allocator_slack": "allocator_slack",
            "runtime": "runtime",
        }.get(row.kind, "claimed")
        sums = phases.setdefault(row.phase, {})
        sums[kind] = sums.get(kind, 0) + row.bytes
    return phases
