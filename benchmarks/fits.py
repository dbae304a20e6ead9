"""Which model fits which method on one card: predicted, for 24, 48 and 80 GB.

    python -m benchmarks.fits      # a minute or two on one core

What `quartet plan` says of one GPU: bfloat16, gradient checkpointing, micro-batches of 2 rows, prompts
of one image and 128 tokens, responses of 512, engines asleep while others work. What a card needs does
not depend on the card, so each cell is planned once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.result import origin, parser, write
from cluster.planner.architectures import load_architecture, preset_names
from cluster.planner.gpus import Gpu, find_gpu
from cluster.planner.settings import Settings
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
    "full, optimiser on a disk": replace(BASE, zero_stage=3, optimizer_device="nvme"),
    "full, on a disk, reference cached": replace(
        BASE, zero_stage=3, optimizer_device="nvme", reference="cached"
    ),
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
                    "disk_bytes": plan.disk_bytes,
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
    """Plan everything anew, model by model."""
    asked = parser(__doc__, "fits.json")
    asked.add_argument("--models", nargs="+", choices=preset_names(), default=list(MODELS))
    options = asked.parse_args()
    result: dict[str, Any] = {
        **origin("benchmarks.fits", kind="predicted"),
        "host_bytes": HOST_BYTES,
        "cards": {card: find_gpu(card).memory_bytes for card in CARDS},
        "cells": [],
    }
    for name in options.models:
        result["cells"] += plan_model(name)
    write(options.output, result)


if __name__ == "__main__":
    main()
