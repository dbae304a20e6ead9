"""The step's part of `benchmarks.gpu`: each method's copies in one process, steps counted and timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from actors.extensions import load_adam_extension
from actors.giving_back import give_back_dead
from benchmarks.cut import said
from benchmarks.flops import Work, step_flops, utilisation
from cluster.bench import Cell, Load, bench_memory
from cluster.bench_plan import Shortage, total
from cluster.planner.architectures import Architecture, load_architecture

FULL = ("full", "offload")
"""All weights trained: the second, with optimiser states on the host, where the first does not fit."""
LARGE = 2 * 10**9
"""Parameters from which a forward has two rows."""


def load_of(architecture: Architecture, *, tiny: bool) -> Load:
    """A step of so many tokens that what is done once for it, the optimiser's part, is small, in
    forwards so small that their activations fit beside a model's states.
    """
    if tiny:
        return Load(batch=4, sequence=16)
    return Load(
        batch=32,
        sequence=256,
        bf16=True,
        micro_batch=2 if architecture.num_parameters >= LARGE else 8,
        gradient_checkpointing=True,
    )


def measure(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A cell for each method with all its weights trained, then one with adapters."""
    architecture = load_architecture(spec["folder"])
    load = load_of(architecture, tiny=spec["tiny"])
    for method in spec["methods"]:
        for regime in FULL:
            cell = attempt(spec["folder"], architecture, method, regime, load)
            yield cell
            if cell.get("fits"):
                break
    for method in spec["methods"]:
        yield attempt(spec["folder"], architecture, method, "lora", load)


def attempt(
    folder: str, architecture: Architecture, method: str, regime: str, load: Load
) -> dict[str, Any]:
    """One cell, or why there is none: memory that ran out, or a compiler that is not there, ends this
    cell and no other.
    """
    row: dict[str, Any] = {"part": "step", "method": method, "regime": regime}
    try:
        if regime == "offload" and torch.cuda.is_available():
            load_adam_extension()
        (cell,) = bench_memory([folder], [method], load, [regime])
    except Exception as error:  # noqa: BLE001 it is a row of the table
        why = said(error)
    else:
        return {**row, **told(cell, architecture, load)}
    # Out here, as the error holds the frames and they hold the copies.
    give_back_dead()
    return {**row, "failure": why}


def told(cell: Cell | Shortage, architecture: Architecture, load: Load) -> dict[str, Any]:
    """What a cell says in the file."""
    planned = {"planned": total(cell.planned), "planned_host": total(cell.planned_host)}
    if isinstance(cell, Shortage):
        return {"fits": False, **planned, "needed": cell.needed, "free": cell.free}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    flops = cell_flops(cell, architecture)
    return {
        "fits": True,
        "measured": cell.peak,
        "measured_host": total(cell.host),
        **planned,
        "copies": {copy: sum(kinds.values()) for copy, kinds in cell.measured.items()},
        "unattributed": cell.unattributed,
        "processes": cell.processes,
        "seconds": cell.seconds_per_step,
        "tokens_per_second": cell.tokens_per_second,
        "flops": flops,
        "mfu": utilisation(flops, cell.seconds_per_step, device) if load.bf16 else None,
        "load": asdict(load),
    }


def cell_flops(cell: Cell, architecture: Architecture) -> float:
    """Of the step of every trained copy on the cell's own rows; what gradient checkpointing computes
    again is not counted, and a critic has no vocabulary head.
    """
    work = Work(cell.lengths, cell.targets, cell.image_tokens)
    lora = cell.regime == "lora"
    return sum(
        step_flops(architecture, work, lora=lora, head=role != "critic") for role in cell.processes
    )
