"""Which model fits which method on one card: predicted, for 24, 48 and 80 GB.

    python -m benchmarks.fits --output benchmarks/fits.json      # about ten minutes on one core

What `quartet plan` says of one GPU: bfloat16, gradient checkpointing, micro-batches of 2 rows, prompts
of one image and 128 tokens, responses of 512, engines asleep while others work. What a card needs does
not depend on the card, so each cell is planned once. Models that the file has already are kept.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.planner.architectures import load_architecture, preset_names
from cluster.planner.gpus import Gpu, find_gpu
from cluster.planner.settings import Settings
from trainers.comparison import write_atomic
from trainers.config import METHODS as CONFIGS

MODELS = ("smolvlm2-500m", "smolvlm2-2.2b", "qwen2.5-vl-3b", "llava-1.5-7b", "qwen2.5-vl-7b")
METHODS = ("ppo", "dpo", "nsft")
CARDS = ("24gb", "48gb", "80gb")
HOST_BYTES = 256 * 10**9
"""Of host memory beside the card, for what is parked there."""
BASE = Settings(sleep=True, zero_stage=0)
REGIMES = {
    "full": BASE,
    "full, optimiser on the host": replace(BASE, zero_stage=2, optimizer_device="cpu"),
    "full, that and reference cached": replace(
        BASE, zero_stage=2, optimizer_device="cpu", reference="cached"
    ),
    "full, one copy at a time": replace(BASE, time_slice=True),
    "LoRA 64": replace(BASE, lora_rank=64),
    "LoRA 64, one copy at a time": replace(BASE, lora_rank=64, time_slice=True),
}
"""In the order of what one would rather have."""
ANY = Gpu(name="any", memory_bytes=2**60, marketed_gb=0)
"""So large that one is always enough."""


def plan_model(name: str) -> list[dict[str, Any]]:
    """Every method in every regime, on one card."""
    from cluster.planner.plan import Planner
    from trainers.registry import make_method

    planner = Planner(load_architecture(name), ANY)
    cells = []
    for method in METHODS:
        for regime, settings in REGIMES.items():
            plan = planner.plan(make_method(CONFIGS[method]()), settings, 1)
            cells.append(
                {
                    "model": name,
                    "method": method,
                    "regime": regime,
                    "bytes": plan.peak_bytes_per_gpu,
                    "host_bytes": plan.host_bytes,
                    "binding_phase": plan.binding_phase,
                }
            )
            print(f"{name} {method} {regime}: {plan.peak_bytes_per_gpu / 1e9:.1f} GB", flush=True)
    return cells


def fitting(cells: list[dict[str, Any]], memory: int, host: int) -> dict[str, Any] | None:
    """The first regime that a card and its host have room for, of one model and method."""
    by_regime = {cell["regime"]: cell for cell in cells}
    for regime in REGIMES:
        cell = by_regime[regime]
        if cell["bytes"] <= memory and cell["host_bytes"] <= host:
            return cell
    return None


def main() -> None:
    """Plan what is missing, model by model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=preset_names(), default=list(MODELS))
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "label": "predicted",
        "host_bytes": HOST_BYTES,
        "cards": {card: find_gpu(card).memory_bytes for card in CARDS},
        "cells": [],
    }
    if arguments.output.is_file():
        result["cells"] = json.loads(arguments.output.read_text(encoding="utf-8"))["cells"]
    done = {cell["model"] for cell in result["cells"]}
    for name in arguments.models:
        if name not in done:
            result["cells"] += plan_model(name)
            write_atomic(arguments.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
