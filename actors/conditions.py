"""What a trained copy runs under, read from the engine that holds it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from actors.memory import engine_tensors
from trainers.conditions import Conditions, LogprobPath, MicroBatch, Precision, Shards


def trained_conditions(
    engine: Any, *, ranks: int, most_rows: int, largest: tuple[int, int]
) -> Conditions:
    """Conditions of a policy's DeepSpeed engine, but for what only the run knows.

    Args:
        engine: over an `actors.modules.PolicyModule`.
        ranks: processes that share the copy.
        most_rows: the ceiling of rows of a micro-batch.
        largest: (rows, padded length) of the largest one so far; (0, 0) before the first.
    """
    module, tensors = engine.module, engine_tensors(engine)
    trained = [p for p in module.parameters() if p.requires_grad]
    rows, length = largest
    # The counters of steps are float32 in every precision, and no size.
    moments = [tensor for tensor in tensors["optimizer"] if tensor.dim()]
    return Conditions(
        precision=Precision(
            weights=_dtypes(module.parameters()),
            masters=_dtypes(tensors["masters"] or trained),
            optimizer=_dtypes(moments) or None,
        ),
        micro_batch=MicroBatch(tokens=rows * length, rows=rows, length=length, most_rows=most_rows)
        if rows
        else None,
        shards=Shards(ranks=ranks, zero_stage=engine.zero_optimization_stage()),
        logprob_path=LogprobPath(
            chunk=module.chunk_size,
            gradient_checkpointing=bool(module.vlm.is_gradient_checkpointing),
        ),
    )


def _dtypes(tensors: Iterable[Tensor]) -> str:
    """`float32`, or `bfloat16+float32` where both occur; '' for no tensors."""
    names = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors}
    return "+".join(sorted(names))
