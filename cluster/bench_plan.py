"""What a cell of `quartet bench memory` is planned to need, and whether the device has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from actors.train_spec import TrainSpec
from cluster.machine import available_memory
from cluster.planner.copy_plan import CopyPlanner
from cluster.planner.settings import Settings
from trainers.batch import Batch
from trainers.ledger import Copies
from trainers.method import Method

HOST_RESERVE = 2**30
"""Bytes of host memory left to libraries, the processor, and whatever else runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """A cell that was not built, as it would not fit."""

    model: str
    method: str
    regime: str
    planned: Copies
    planned_host: Copies
    free: int
    """Bytes where it lacks them: on the device, or on the host."""
    needed: int
    """Bytes planned there."""


def planned_bytes(
    planner: CopyPlanner, method: Method, spec: TrainSpec, batch: Batch, banned: int
) -> tuple[Copies, Copies]:
    """What the planner says of the same copies and the same batch, on the device and on the host.

    The bucket of a sharded backward comes and goes: measured, it is among the activations.
    """
    rows, length = batch.input_ids_BT.shape
    response = int(batch.mask_BR.sum()) // rows
    image = planner.architecture.config.image_token_id
    image_tokens = int((batch.input_ids_BT == image).sum()) // rows
    micro = min(rows, spec.micro_batch_size)
    settings = Settings(
        zero_stage=spec.zero_stage,
        bf16=spec.bf16,
        lora_rank=spec.lora_rank,
        gradient_checkpointing=spec.gradient_checkpointing,
        micro_batch_size=micro,
        accumulate=micro < rows,
        response_tokens=response,
        text_tokens=length - response - image_tokens,
        image_tokens=image_tokens,
        num_banned=banned,
        chunk_size=spec.chunk_size,
        optimizer_device="device" if spec.offload_optimizer == "none" else spec.offload_optimizer,
    )
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


def total(copies: Mapping[str, Mapping[str, int]]) -> int:
    """Bytes of all copies and kinds."""
    return sum(sum(kinds.values()) for kinds in copies.values())


def lacking(planned: Copies, planned_host: Copies) -> tuple[int, int] | None:
    """Bytes needed and bytes free where the plan does not fit; None if it fits, or if nobody can
    say what is free. Without a GPU device and host are one memory.
    """
    device, host = total(planned), total(planned_host)
    asked = (
        [(device, torch.cuda.mem_get_info()[0]), (host, free_host())]
        if torch.cuda.is_available()
        else [(device + host, free_host())]
    )
    return next(((n, free) for n, free in asked if free is not None and n > free), None)


def free_host() -> int | None:
    """Bytes of host memory that a cell may take; None where the system does not tell."""
    available = available_memory()
    return None if available is None else max(0, int(available * 2**30) - HOST_RESERVE)
