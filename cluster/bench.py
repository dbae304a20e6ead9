"""`quartet bench memory`: real training steps of each method, counted, beside what was planned.

Everything runs in this process, on whatever device is there: the trained copies in DeepSpeed
engines, the reference and the reward model as frozen modules, responses drawn at random. There is
no rollout engine: the figures are the method's own copies in the training step.
"""

from __future__ import annotations

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

from actors.modules import load_reward_module
from actors.reference import ReferenceActor
from actors.train import TrainActor
from actors.train_spec import TrainSpec
from cluster.planner.architectures import Architecture, load_architecture
from cluster.planner.copy_plan import CopyPlanner
from cluster.planner.settings import Settings
from trainers.batch import Batch, Group, collate, encode_row
from trainers.comparison import write_atomic
from trainers.config import METHODS
from trainers.data.drawn_model import build_model, build_processor, save_pretrained_folder
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
    tokens_per_second: float

    @property
    def peak(self) -> int:
        """Device bytes of all copies, as if their peaks came at once."""
        return _sum(self.measured)


def bench_memory(
    models: Sequence[str],
    methods: Sequence[str],
    load: Load,
    regimes: Sequence[str] = tuple(REGIMES),
) -> list[Cell]:
    """A cell for every model, method and regime."""
    cells: list[Cell] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quartet-bench-")))
        connected = TrainActor()
        connected.connect("127.0.0.1", connected.address()[1])
        for name in models:
            model_dir = _model_folder(name, folder)
            for method in methods:
                for regime in regimes:
                    cells.append(_cell(name, model_dir, method, regime, load, folder))
                    print(f"{name} {method} {regime}: {cells[-1].peak / 1e6:.1f} MB", flush=True)
    return cells


def _model_folder(name: str, folder: Path) -> str:
    """A folder with random weights for a built-in size, or the folder that was given."""
    if name not in SIZES:
        return name
    path = folder / name
    save_pretrained_folder(_widened(SIZES[name]), build_processor(), path)
    return str(path)


SIZES = {"drawn": 1, "drawn-wide": 3}
"""Built-in models: the drawn world's LLaVA, and one three times as wide."""


def _widened(factor: int) -> Any:
    model = build_model(0)
    if factor == 1:
        return model
    config = model.config
    for part in (config.vision_config, config.text_config):
        part.hidden_size *= factor
        part.intermediate_size *= factor
        if hasattr(part, "head_dim"):
            part.head_dim = part.hidden_size // part.num_attention_heads
    return type(model)(config)


def _cell(
    name: str, model_dir: str, method_name: str, regime: str, load: Load, folder: Path
) -> Cell:
    method = make_method(METHODS[method_name]())
    store = ImageStore(folder / "images")
    samples = {s.id: s for s in scene_samples(0, max(1, load.batch // 2), store.put_image)}
    spec = TrainSpec(
        role="policy",
        model_dir=model_dir,
        image_root=str(store.root),
        micro_batch_size=4 * load.batch,
        **REGIMES[regime],
    )
    processing = Processing(model_dir, store)
    groups = _groups(method, samples, processing, load)
    rows = [row for group in groups for row in group]
    measured: Copies = {}
    host: Copies = {}
    static: Copies = {}
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
            seconds += _steps(actor, groups, method, optimisation)
            reading = actor.end_phase("train")
            measured[role] = reading.copies[role]
            away = reading.parked.get(role, {})
            static[role] = {k: v for k, v in actor.memory().items() if k not in away}
            if role in reading.parked:
                host[role] = reading.parked[role]
        for role, copy in frozen.items():
            if role not in trained:
                measured[role] = static[role] = copy.memory()
    batch = collate(rows, [encode_row(row, processing) for row in rows], processing)
    planned, planned_host = _planned(
        load_architecture(model_dir), method, spec, batch, len(processing.banned_ids())
    )
    return Cell(
        model=name,
        method=method_name,
        regime=regime,
        measured=measured,
        host=host,
        static=static,
        planned=planned,
        planned_host=planned_host,
        seconds_per_step=seconds,
        tokens_per_second=int(batch.attention_mask_BT.sum()) / seconds,
    )


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
    for copy in method.copies:
        if copy.trained:
            actor = TrainActor()
            actor.load(replace(spec, role=copy.role))
            trained[copy.role] = actor
        elif copy.role == "reference":
            reference = ReferenceActor()
            reference.load(replace(spec, role="reference"))
            frozen[copy.role] = reference
        else:
            frozen[copy.role] = _RewardCopy(spec)
    try:
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


def _planned(
    architecture: Architecture, method: Method, spec: TrainSpec, batch: Batch, banned: int
) -> tuple[Copies, Copies]:
    """What the planner says of the same copies and the same batch, on the device and on the host.

    The bucket of a sharded backward comes and goes: measured, it is among the activations.
    """
    rows, length = batch.input_ids_BT.shape
    response = int(batch.mask_BR.sum()) // rows
    image = architecture.config.image_token_id
    image_tokens = int((batch.input_ids_BT == image).sum()) // rows
    settings = Settings(
        zero_stage=spec.zero_stage,
        bf16=spec.bf16,
        lora_rank=spec.lora_rank,
        gradient_checkpointing=spec.gradient_checkpointing,
        micro_batch_size=rows,
        accumulate=False,
        response_tokens=response,
        text_tokens=length - response - image_tokens,
        image_tokens=image_tokens,
        num_banned=banned,
        chunk_size=spec.chunk_size,
        optimizer_device="device" if spec.offload_optimizer == "none" else "cpu",
    )
    planner = CopyPlanner(architecture)
    device: Copies = {}
    host: Copies = {}
    for copy in method.copies:
        if not copy.trained:
            device[copy.role] = planner.frozen(copy.role, settings)
            continue
        own = planner.trained(copy.role, settings, 1)
        device[copy.role] = dict(own.device)
        for kind, size in planner.step(copy.role, settings, 1).items():
            device[copy.role][kind] = device[copy.role].get(kind, 0) + size
        if own.host:
            host[copy.role] = own.host
    return device, host


def _sum(copies: Mapping[str, Mapping[str, int]]) -> int:
    return sum(sum(kinds.values()) for kinds in copies.values())


def as_json(cells: Sequence[Cell], load: Load) -> dict[str, Any]:
    """The result for programs, with device and versions."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed")},
        "load": asdict(load),
        "cells": [
            {**asdict(cell), "peak": cell.peak, "planned_peak": _sum(cell.planned)}
            for cell in cells
        ],
    }


def write(cells: Sequence[Cell], load: Load, path: Path) -> None:
    """Write the result as JSON."""
    write_atomic(path, json.dumps(as_json(cells, load), indent=2) + "\n")
