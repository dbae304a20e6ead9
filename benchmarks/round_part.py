"""The round's part of `benchmarks.gpu`: `quartet train` for one round, and what its ledger says."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cut import GRACE, run
from trainers.ledger import LedgerRow, phase_bytes, read_rows

MIB = 2**20


def options(spec: dict[str, Any]) -> dict[str, Any]:
    """The run: one round, a judge that needs no model, next to no evaluation. On one card copies and
    engine take turns. Of four answers to a prompt some come to their end, as a pair's better one must.
    """
    small = spec["tiny"]
    return {
        "model": spec["folder"],
        "judge": "benchmarks.round_judge:judge",
        "judge_check.min_accuracy": 0,  # that it knows nothing is known
        "rounds": 1,
        "rollout.num_prompts": 8 if small else 16,
        "rollout.num_rollouts_per_prompt": 4,
        "rollout.max_tokens": 16 if small else 128,
        "rollout.max_model_len": 1024 if small else 1536,
        "rollout.gpu_memory_utilization": 0.4,
        "rollout.kv_cache_mib": 128,
        "rollout.sleep": "true",
        "train.zero_stage": 0,
        "train.bf16": str(not small).lower(),
        "train.gradient_checkpointing": "true",
        "train.micro_batch_size": 4,
        "train.logprob_chunk": 512,
        "train.time_slice": "true",
        "train.parity_tolerance": 0.1,
        "eval.num_scenes": 4,
        "eval.num_curve_scenes": 0,
        "checkpoint.every": 0,
    }


def command(spec: dict[str, Any], method: str, output: Path) -> list[str]:
    """`quartet train` with them."""
    pairs = {**options(spec), "output": output}.items()
    given = [str(part) for key, value in pairs for part in (f"--{key}", value)]
    return [sys.executable, "-m", "cluster.cli", "train", method, *given]


def prediction(spec: dict[str, Any], method: str, card: int | None) -> Any:
    """The planner's word on one card of so many bytes, for the very settings of `command`; without a
    card on the CPU.
    """
    from benchmarks.fits import ANY
    from benchmarks.shapes import prompt_tokens
    from cluster.planner.architectures import load_architecture
    from cluster.planner.plan import Planner
    from cluster.planner.settings import Settings
    from trainers.config import METHODS
    from trainers.data.images import ImageStore
    from trainers.data.processing import Processing
    from trainers.registry import make_method

    given = options(spec)
    architecture = load_architecture(spec["folder"])
    text, image = prompt_tokens(spec["folder"])
    bf16 = given["train.bf16"] == "true"
    cache = given["rollout.kv_cache_mib"] * MIB
    if card is not None:  # the engine fills its share of the card
        weights = architecture.num_parameters * (2 if bf16 else 4)
        cache = max(0, int(given["rollout.gpu_memory_utilization"] * card) - weights)
    processing = Processing(spec["folder"], ImageStore(tempfile.gettempdir()))
    settings = Settings(
        zero_stage=given["train.zero_stage"],
        bf16=bf16,
        gradient_checkpointing=True,
        micro_batch_size=given["train.micro_batch_size"],
        response_tokens=given["rollout.max_tokens"],
        text_tokens=text,
        image_tokens=image,
        num_banned=len(processing.banned_ids()),
        # Fewer than the engine would take.
        max_num_seqs=given["rollout.num_prompts"] * given["rollout.num_rollouts_per_prompt"],
        kv_cache_bytes=cache,
        chunk_size=given["train.logprob_chunk"],
        judge=False,
        sleep=True,
        time_slice=True,
    )
    return Planner(architecture, ANY).plan(make_method(METHODS[method]()), settings, 1)


def measure(spec: dict[str, Any], method: str) -> dict[str, Any]:
    """One round, or why there is none."""
    import torch

    from cluster.bench_plan import free_host

    card = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else None
    plan = prediction(spec, method, card)
    cell: dict[str, Any] = {
        "planned": plan.peak_bytes_per_gpu,
        "planned_host": plan.host_bytes,
        "binding_phase": plan.binding_phase,
    }
    if card is not None:
        room = free_host()
        if plan.peak_bytes_per_gpu > card:
            return {**cell, "fits": False, "lacks": "device"}
        if room is not None and plan.host_bytes > room:
            return {**cell, "fits": False, "lacks": "host"}
    with tempfile.TemporaryDirectory(prefix="r") as temporary:
        output = Path(temporary)
        # This process needs a moment of its own time to say how it ended.
        ended = run(command(spec, method, output), max(1.0, spec["seconds"] - 2 * GRACE), output)
        found = [json.loads(f.read_text(encoding="utf-8")) for f in output.rglob("compare.json")]
        result: dict[str, Any] = next((arm for one in found for arm in one["methods"].values()), {})
        if ended.failure or result.get("failure"):
            # A run that stopped itself has written why; its last line is where its report is.
            why = ended.failure if ended.code is None else result.get("failure") or ended.failure
            return {**cell, "failure": why}
        (file,) = output.rglob("ledger.jsonl")
        rows = read_rows(file)
    parked = [row for row in rows if row.kind != "runtime"]
    return {
        **cell,
        "fits": True,
        "measured": max(phase_bytes(rows).values()),
        "measured_host": max(phase_bytes(parked, "host").values(), default=0),
        "seconds_by_phase": result["seconds_by_phase"],
        "ledger": ledger_sums(rows),
        "unknown": sorted({row.process for row in rows if row.source == "unknown"}),
    }


def ledger_sums(rows: Sequence[LedgerRow]) -> dict[str, dict[str, int]]:
    """Phase -> bytes that copies claim, that the allocator counts beside them, that it holds back,
    and that the driver counts beside it. All processes together; of copies that take turns the
    largest.
    """
    beside = ("unattributed", "allocator_slack", "runtime")
    phases: dict[str, dict[str, int]] = {}
    for kind in ("claimed", *beside):
        own = [row for row in rows if (row.kind if row.kind in beside else "claimed") == kind]
        for phase, size in phase_bytes(own).items():
            phases.setdefault(phase, {})[kind] = size
    return phases
