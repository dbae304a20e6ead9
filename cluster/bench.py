"""`quartet bench memory`: real training steps of each method, counted, beside what was planned.

Everything runs in this process, on whatever device is there: the trained copies in DeepSpeed
engines, the reference and the reward model as frozen modules, responses drawn at random. There is
no rollout engine: the figures are the method's own copies in the training step.
"""

from __future__ import annotations

import gc
import json
import platform
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from actors.giving_back import give_back_dead
from actors.ledger import Reading
from actors.modules import load_reward_module
from actors.reference import ReferenceActor
from actors.train import TrainActor
from actors.train_spec import TrainSpec
from cluster.bench_models import BenchModel, find_model
from cluster.bench_plan import Shortage, lacking, planned_bytes, total
from cluster.bench_table import shortage
from cluster.planner.copy_plan import CopyPlanner
from trainers.batch import Group, collate, encode_row
from trainers.comparison import write_atomic
from trainers.config import METHODS
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.data.records import Critique, Finding, Rollout, Sample, ScoredRollout
from trainers.data.scenes import scene_samples
from trainers.ledger import Copies, Kinds
from trainers.method import Method, Optimisation
from trainers.registry import make_method

REGIMES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora_rank": 8},
    "offload": {"zero_stage": 2, "offload_optimizer": "cpu"},
}
"""All weights trained; adapters; all weights with optimiser states in host memory."""
TRACKED_STEPS = 4
"""The first makes Adam's states, the second is tracked, and the rest are timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a step works on."""

    batch: int = 16
    """Rollouts, half of them good and half bad: rows of PPO, twice the pairs of the others."""
    sequence: int = 48
    """Tokens of a response."""
    bf16: bool = False
    """Weights and activations in bfloat16, with float32 masters; otherwise all in float32."""
    micro_batch: int | None = None
    """Rows of a forward and backward; all of the step at once by default."""
    gradient_checkpointing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One method in one regime."""

    model: str
    method: str
    regime: str
    measured: Copies
    """Copy -> kind -> device bytes at its peak in the training step."""
    host: Copies
    planned: Copies
    planned_host: Copies
    static: Copies
    """Copy -> kind -> bytes that stay, with all gradients: before the optimiser's step."""
    seconds_per_step: float
    """Of all trained copies, one after the other."""
    tokens_per_second: float
    lengths: tuple[int, ...]
    """Tokens of each row of the step, images expanded."""
    targets: int
    """Tokens that are learnt from, all rows together."""
    image_tokens: int
    processes: dict[str, dict[str, int | None]]
    """Trained role -> what this process held at the peak of its steps: bytes that copies claim, and
    beside them `unattributed`, `allocator_slack` and `runtime`."""
    unattributed: int = 0
    """Bytes at the peak that a GPU's allocator counted and no copy claims."""

    @property
    def peak(self) -> int:
        """Device bytes of all copies, as if their peaks came at once."""
        return total(self.measured) + self.unattributed


def bench_memory(
    models: Sequence[str],
    methods: Sequence[str],
    load: Load,
    regimes: Sequence[str] = tuple(REGIMES),
) -> list[Cell | Shortage]:
    """A cell for every model, method and regime; a shortage where the plan does not fit, of which
    nothing is built.
    """
    cells: list[Cell | Shortage] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quartet-bench-")))
        for name in models:
            model = find_model(name, folder)
            planner = CopyPlanner(model.architecture)
            for method in methods:
                for regime in regimes:
                    cell = _cell(model, planner, method, regime, load, folder)
                    cells.append(cell)
                    if isinstance(cell, Shortage):
                        said = shortage(asdict(cell))
                    else:
                        said = f"{cell.peak / 1e6:.1f} MB"
                    print(f"{name} {method} {regime}: {said}", flush=True)
    return cells


def _cell(
    model: BenchModel,
    planner: CopyPlanner,
    method_name: str,
    regime: str,
    load: Load,
    folder: Path,
) -> Cell | Shortage:
    give_back_dead()  # what an earlier cell left is not free until then
    method = make_method(METHODS[method_name]())
    store = ImageStore(folder / "images")
    samples = {s.id: s for s in scene_samples(0, max(1, load.batch // 2), store.put_image)}
    spec = TrainSpec(
        role="policy",
        model_dir=str(model.folder),
        image_root=str(store.root),
        micro_batch_size=load.micro_batch or 4 * load.batch,
        bf16=load.bf16,
        gradient_checkpointing=load.gradient_checkpointing,
        **REGIMES[regime],
    )
    processing = Processing(model.folder, store)
    groups = _groups(method, samples, processing, load)
    rows = [row for group in groups for row in group]
    batch = collate(rows, [encode_row(row, processing) for row in rows], processing)
    banned = len(processing.banned_ids())
    planned, planned_host = planned_bytes(planner, method, spec, batch, banned)
    if short := lacking(planned, planned_host):
        needed, free = short
        return Shortage(
            model=model.name,
            method=method_name,
            regime=regime,
            planned=planned,
            planned_host=planned_host,
            needed=needed,
            free=free,
        )
    if not torch.distributed.is_initialized():
        connected = TrainActor()
        connected.connect(*connected.address())
        # Every copy that leaves collects garbage, and every reading on a CPU walks all objects:
        # what was imported by now, most of them, is not looked at again.
        gc.freeze()
    model.build(torch.bfloat16 if load.bf16 else torch.float32)
    measured: Copies = {}
    host: Copies = {}
    static: Copies = {}
    processes: dict[str, dict[str, int | None]] = {}
    unattributed: list[int] = []
    seconds = 0.0
    with _copies(method, spec) as (trained, frozen):
        for signal in method.signals:
            source = trained.get(signal.role) or frozen[signal.role]
            for row, values in zip(rows, source.score_rows(rows), strict=True):
                row.tokens[signal.name] = values
        method.prepare(groups)
        for trained_role in method.trained:
            role, actor = str(trained_role), trained[trained_role]
            optimisation = replace(
                method.optimisation(trained_role),
                epochs=1,
                minibatch_size=len(groups),
                warmup_steps=0,
            )
            # Peaks are the steps' own from here on.
            held = {own: each.end_phase("prepare").copies[own] for own, each in trained.items()}
            held |= {own: copy.memory() for own, copy in frozen.items()}
            actor.meter.forget()
            seconds += _steps(actor, groups, method, optimisation)
            reading = actor.end_phase("train", {own: held[own] for own in held if own != role})
            processes[role] = process_bytes(reading)
            if reading.source == "allocator":
                unattributed.append(reading.copies["process"]["unattributed"])
            measured[role] = reading.copies[role]
            away = reading.parked.get(role, {})
            static[role] = {k: v for k, v in actor.memory().items() if k not in away}
            if role in reading.parked:
                host[role] = reading.parked[role]
        for role, copy in frozen.items():
            if role not in trained:
                measured[role] = static[role] = copy.memory()
    return Cell(
        model=model.name,
        method=method_name,
        regime=regime,
        measured=measured,
        host=host,
        static=static,
        planned=planned,
        planned_host=planned_host,
        seconds_per_step=seconds,
        tokens_per_second=int(batch.attention_mask_BT.sum()) / seconds,
        lengths=tuple(batch.attention_mask_BT.sum(dim=1).tolist()),
        targets=int(batch.mask_BR.sum()),
        image_tokens=int((batch.input_ids_BT == processing.image_token_id).sum()),
        processes=processes,
        unattributed=max(unattributed, default=0),
    )


def process_bytes(reading: Reading) -> dict[str, int | None]:
    """What copies claim in a process, and what its allocator and its driver count beside that."""
    copies = {copy: kinds for copy, kinds in reading.copies.items() if copy != "process"}
    return {"claimed": total(copies), **reading.copies["process"], "runtime": reading.runtime}


def _steps(
    actor: TrainActor, groups: Sequence[Group], method: Method, optimisation: Optimisation
) -> float:
    """Take steps; seconds of the fastest after those that are tracked."""
    times = []
    for number in range(TRACKED_STEPS):
        metrics = actor.train(groups, method, optimisation, seed=number)
        times.append(metrics["train_seconds"])
    return min(times[2:])


class _RewardCopy:
    """The reward model as PPO's training step holds it: resident and idle."""

    def __init__(self, spec: TrainSpec):
        dtype = torch.bfloat16 if spec.bf16 else torch.float32
        self.module = load_reward_module(spec.model_dir, dtype).requires_grad_(False)
        self.module.to("cuda" if torch.cuda.is_available() else "cpu")

    def memory(self) -> Kinds:
        from actors.memory import module_bytes

        return {"weights": module_bytes(self.module)}


@contextmanager
def _copies(method: Method, spec: TrainSpec) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The method's copies, trained and frozen ones, by role."""
    trained: dict[str, Any] = {}
    frozen: dict[str, Any] = {}
    try:
        for copy in method.copies:
            if copy.trained:
                trained[copy.role] = TrainActor()
                trained[copy.role].load(replace(spec, role=copy.role))
            elif copy.role == "reference":
                frozen[copy.role] = ReferenceActor()
                frozen[copy.role].load(replace(spec, role="reference"))
            else:
                frozen[copy.role] = _RewardCopy(spec)
        yield trained, frozen
    finally:
        for actor in trained.values():
            actor.unload()


def _groups(
    method: Method, samples: Mapping[str, Sample], processing: Processing, load: Load
) -> list[Group]:
    """Groups as the method selects them from a good and a bad random response to each sample."""
    rng = random.Random(0)
    banned = {*processing.banned_ids(), processing.eos_id}
    ids = [token for token in range(processing.vocab_size) if token not in banned]
    findings = {
        1.0: (Finding(claim="red circle", verdict="ok"),),
        -1.0: (
            Finding(claim="red circle", verdict="ok"),
            Finding(claim="blue cross", verdict="bad"),
        ),
    }
    scored = [
        ScoredRollout(
            rollout=Rollout(
                id=f"{sample}/{score}",
                sample_id=sample,
                text=f"{score}",
                token_ids=(*rng.choices(ids, k=load.sequence - 1), processing.eos_id),
                logprobs=(0.0,) * load.sequence,
                policy_version=0,
                seed=0,
                temperature=1.0,
                finish_reason="stop",
                prompt_tokens=0,
            ),
            judge="bench",
            score=score,
            failure=None,
            critique=Critique(text="", findings=found),
        )
        for sample in samples
        for score, found in findings.items()
    ]
    return method.select(scored, samples, rng).groups


def as_json(cells: Sequence[Cell | Shortage], load: Load) -> dict[str, Any]:
    """The result for programs, with device and versions."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed")},
        "load": asdict(load),
        "cells": [_cell_as_json(cell) for cell in cells],
    }


def _cell_as_json(cell: Cell | Shortage) -> dict[str, Any]:
    fits = isinstance(cell, Cell)
    peak = {"peak": cell.peak} if isinstance(cell, Cell) else {}
    return {**asdict(cell), "fits": fits, **peak, "planned_peak": total(cell.planned)}


def write(cells: Sequence[Cell | Shortage], load: Load, path: Path) -> None:
    """Write the result as JSON."""
    write_atomic(path, json.dumps(as_json(cells, load), indent=2) + "\n")
