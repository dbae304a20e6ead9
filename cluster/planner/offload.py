"""Bytes of a trained copy whose optimiser DeepSpeed keeps in host memory (`--offload optimizer`).

Between the last backward and the step, as `cluster.planner.static`, whose table this continues:
with P elements in the rank's partition, T in the whole tensors that touch it, L in the largest
trained tensor, and w bytes per weight:

* ZeRO 1 and 2, device: weights, and w L of scratch. Host: 12P Adam and masters, 4P gradients, wP
  new weights on their way back, w L of scratch; under ZeRO 2 with several micro-batches also the
  sums of their gradients, wT.
* ZeRO 3, device: weights and the reduction bucket. Host: 12P Adam and masters, 4P gradients, and wP
  in which they arrive.

Limiting case: full fine-tuning in bf16 on one rank, one micro-batch: 18 bytes per parameter in host
memory at every stage, and not the 12 of states and masters alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.planner.static import (
    MASTER_BYTES,
    Sharding,
    TensorShape,
    touching,
    trained_copy_bytes,
)

NORM_BYTES = 8
"""Of the gradient of each parameter that the loss reaches, kept for clipping."""
ZERO_3_SCALAR_BYTES = 4 + 1
"""The norm of the last step's gradient, float32 here, and a flag for infinities."""


@dataclass(frozen=True, slots=True)
class Offloaded:
    """Kind -> bytes on one rank; and those of its files."""

    device: dict[str, int]
    host: dict[str, int]
    disk: int = 0


def offloaded_copy_bytes(
    shapes: Sequence[TensorShape],
    buffers_bytes: int,
    sharding: Sharding,
    rank: int = 0,
    *,
    accumulate: bool,
) -> Offloaded:
    """Bytes of a trained copy on `rank` with optimiser states and masters in host memory.

    Source: runtime/zero/stage_1_and_2.py, `__init__`, `initialize_optimizer_states` and
    `async_accumulate_grad_in_cpu_via_gpu`; runtime/zero/stage3.py, `_setup_for_real_optimizer`.

    Args:
        shapes, buffers_bytes, sharding, rank: as for `trained_copy_bytes`.
        accumulate: whether the step has more than one micro-batch.

    Raises:
        ValueError: under ZeRO 0, which has no offload, or as `trained_copy_bytes`.
    """
    if not sharding.zero_stage:
        raise ValueError("ZeRO 0 does not offload the optimiser")
    kinds = trained_copy_bytes(shapes, buffers_bytes, sharding, rank)
    width = 2 if sharding.bf16 else 4
    own = [shape for shape in shapes if shape.trained]
    partition = kinds["masters"] // MASTER_BYTES
    host = {"optimizer": kinds["optimizer"], "masters": kinds["masters"]}
    host["gradients"] = MASTER_BYTES * partition
    if sharding.zero_stage == 3:
        host["gradients"] += kinds["gradients"]
        reached = sum(shape.reached for shape in own)
        scratch = width * sharding.reduce_bucket_size + ZERO_3_SCALAR_BYTES
    else:
        scratch = width * max(shape.numel for shape in own)
        host["communication"] = width * partition + scratch
        own = list(touching(own, partition * rank, partition * (rank + 1)))
        reached = sum(shape.reached for shape in own)
        if sharding.zero_stage == 2 and accumulate:
            host["communication"] += width * sum(shape.numel for shape in own if shape.reached)
        scratch += kinds["communication"]
    communication = scratch + NORM_BYTES * reached
    device = {"weights": kinds["weights"], "communication": communication}
    return Offloaded(device, host)
