"""Rows that a policy could have answered, steps on them, and what a step moved."""

from __future__ import annotations

import random
from typing import Any

import torch

from trainers.batch import Row
from trainers.method import Optimisation

TOWER_LEFT_OUT = ("post_layernorm", "layers.2.", "image_newline")
"""What LLaVA's towers have beyond the layer that is read, and what only tiles reach."""


def response(processing, sample, length: int, id: str, **scalars: float) -> Row:
    """Any tokens that a policy could sample, and EOS."""
    banned = {*processing.banned_ids(), processing.eos_id}
    free = [token for token in range(processing.vocab_size) if token not in banned]
    ids = random.Random(id).choices(free, k=length - 1)
    return Row.of_response(sample, (*ids, processing.eos_id), id, **scalars)


def step(**options: Any) -> Optimisation:
    return Optimisation(
        **({"learning_rate": 1e-3, "epochs": 1, "minibatch_size": 8, "warmup_steps": 0} | options)
    )


def state(actor) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in actor._engine.module.named_parameters()}


def changed(actor, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in state(actor).items() if not torch.equal(tensor, before[name])}
