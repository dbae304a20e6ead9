"""Bytes that a copy of a model holds, by arithmetic from the shapes of its parameters.

Predicts to the byte what `actors.memory.bytes_by_kind` measures between the last backward and the
step: one AdamW of torch over one parameter group, wrapped by DeepSpeed 0.19.8 (the formulas follow
its buffers, so a new version has to be read again). With T trained and F frozen elements, w bytes
per weight (2 in bf16, 4 in float32), N ranks, bytes on one rank, paddings and scalars aside:

| ZeRO | weights | gradients | masters | Adam | sum in bf16 | in float32 |
|---|---|---|---|---|---|---|
| 0 | w(T+F) | wT | 4T in bf16, else 0 | 8T | 16T + 2F | 16T + 4F |
| 1, 2 | w(T+F) | wT/N | 4T/N | 8T/N | 2T + 14T/N + 2F | 4T + 16T/N + 4F |
| 3 | w(T+F)/N | wT/N | 4T/N | 8T/N | (16T + 2F)/N | (20T + 4F)/N |

Limiting case: full fine-tuning in bf16 on one rank is 16 bytes per parameter at every stage, and
not 18: gradients are accumulated in bf16 (DeepSpeed's default, as `data_types.grad_accum_dtype` is
not given), and their float32 copy exists only inside the step. In float32 it is 16 at stage 0 and
20 above, where masters stand beside weights of the same precision. ZeRO 3 also holds its reduction
bucket and whole copies of small parameters.

Not here: activations, and what only the backward has (`backward_bucket_bytes`; under ZeRO 1 also
the gradients of all trained parameters, wT, until the last micro-batch reduces them).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

ADAM_BYTES = 8
"""Two float32 moments per element."""
STEP_BYTES = 4
"""AdamW's step counter, a float32 tensor for each tensor that is optimised."""
MASTER_BYTES = 4
ZERO_1_2_SCALAR_BYTES = 4
"""The norm of the last step's gradient, float32."""
ZERO_3_SCALAR_BYTES = 8 + 1
"""The norm of the last step's gradient, float64, and a flag for infinities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorShape:
    """One parameter tensor; a tied weight is listed once."""

    name: str
    numel: int
    trained: bool
    bytes_per_element: int = 4
    """Of the weight as it is loaded. DeepSpeed's bf16 mode casts every parameter to 2."""
    reached: bool = True
    """Whether the loss depends on it. CLIP's last norm is trained and not reached in LLaVA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How DeepSpeed holds a trained copy; the defaults are its own."""

    zero_stage: int
    num_ranks: int = 1
    bf16: bool = False
    """DeepSpeed's bf16 mode. Off, frozen weights may still be loaded in bf16."""
    reduce_bucket_size: int = 500_000_000
    """Elements."""
    param_persistence_threshold: int = 100_000
    """Under ZeRO 3, a parameter of at most so many elements is whole on every rank."""
    sub_group_size: int = 1_000_000_000
    """Under ZeRO 3, elements of a partition that are optimised at once."""

    def __post_init__(self) -> None:
        """Refuse what DeepSpeed does not have."""
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage must be 0, 1, 2 or 3, got {self.zero_stage}")
        if self.num_ranks < 1:
            raise ValueError(f"num_ranks must be at least 1, got {self.num_ranks}")


def frozen_copy_bytes(shapes: Sequence[TensorShape], buffers_bytes: int) -> dict[str, int]:
    """Bytes of a copy outside DeepSpeed (reference, judge): weights and buffers, every rank alike.

    Limiting case: 2 bytes per parameter in bf16. Buffers are the module's, those that a state dict
    leaves out included.
    """
    return {"weights": buffers_bytes + sum(s.numel * s.bytes_per_element for s in shapes)}


def trained_copy_bytes(
    shapes: Sequence[TensorShape], buffers_bytes: int, sharding: Sharding, rank: int = 0
) -> dict[str, int]:
    """Bytes of a copy in DeepSpeed on `rank`, kind -> bytes; a kind without bytes is left out.

    Formulas: `_zero_0`, `_zero_1_2` and `_zero_3`, and the module's table.

    Args:
        shapes: every parameter, in the order of `module.parameters()`; partitions cut through it.
        buffers_bytes: bytes of the module's buffers, which DeepSpeed neither casts nor partitions.
        sharding: stage, ranks and sizes.
        rank: in the range of `sharding.num_ranks`.

    Raises:
        ValueError: the rank does not exist, nothing is trained, or (ZeRO 1 to 3 without bf16 mode)
            a trained parameter is not in float32, which no formula here covers.
    """
    if not 0 <= rank < sharding.num_ranks:
        raise ValueError(f"rank {rank} does not exist: there are {sharding.num_ranks}")
    trained = [shape for shape in shapes if shape.trained]
    if not trained:
        raise ValueError("no parameter is trained; use frozen_copy_bytes")
    if sharding.zero_stage and any(
        _width(shape, sharding) != _width_trained(sharding) for shape in trained
    ):
        raise ValueError(
            f"ZeRO {sharding.zero_stage} without bf16: trained parameters must be in float32 "
            "(bytes_per_element 4)"
        )
    if sharding.zero_stage == 0:
        kinds = _zero_0(shapes, sharding)
    elif sharding.zero_stage == 3:
        kinds = _zero_3(shapes, sharding)
    else:
        kinds = _zero_1_2(shapes, sharding, rank)
    kinds["weights"] += buffers_bytes
    return {kind: size for kind, size in kinds.items() if size}


def fullest_rank(shapes: Sequence[TensorShape], sharding: Sharding) -> int:
    """The rank whose share is largest. Only the gradients of ZeRO 1 and 2 differ from rank to rank,
    by the tensors that two ranks' partitions cut through; elsewhere it is 0.

    Example: trained tensors of 7 and 4 elements on two ranks, partitions [0, 6) and [6, 12): rank 0
    holds the gradient of the first, 7, rank 1 those of both and a padding, 12.
    """
    if sharding.zero_stage not in (1, 2) or sharding.num_ranks == 1:
        return 0
    trained = [shape for shape in shapes if shape.trained]
    ends = list(accumulate(shape.numel for shape in trained))
    starts = [0, *ends]
    unreached = [0, *accumulate(0 if shape.reached else shape.numel for shape in trained)]
    partition = _partition(ends[-1], sharding)

    def gradients(rank: int) -> int:
        start, end = partition * rank, partition * (rank + 1)
        first, behind = bisect_right(ends, start), bisect_left(starts, end, hi=len(ends))
        padding = max(0, end - max(start, ends[-1]))
        if first >= behind:
            return padding
        zeros = unreached[behind] - unreached[first]
        whole = ends[behind - 1] - starts[first]
        return padding + zeros + (whole if zeros < whole else 0)

    return max(range(sharding.num_ranks), key=gradients)


def backward_bucket_bytes(sharding: Sharding) -> int:
    """Bytes of the reduction bucket that ZeRO 1 and 2 allocate in each backward and free at its end
    (`setup_buckets`); `trained_copy_bytes` has none of it. 0 for the other stages: ZeRO 3's is
    allocated for good, as `communication`, and ZeRO 0 flattens small groups of gradients.

    With DeepSpeed's default of 5e8 elements: 1 GB in bf16, 2 GB in float32.
    """
    if sharding.zero_stage not in (1, 2):
        return 0
    return sharding.reduce_bucket_size * _width_trained(sharding)


def _width(shape: TensorShape, sharding: Sharding) -> int:
    """Bytes per element as held: `_cast_module_mixed_precision` in runtime/engine.py."""
    return 2 if sharding.bf16 else shape.bytes_per_element


def _width_trained(sharding: Sharding) -> int:
    return 2 if sharding.bf16 else 4


def _weights(shapes: Sequence[TensorShape], sharding: Sharding) -> int:
    return sum(shape.numel * _width(shape, sharding) for shape in shapes)


def _zero_0(shapes: Sequence[TensorShape], sharding: Sharding) -> dict[str, int]:
    """Every rank holds all. For n elements of w bytes: w n + w n + 2 w n + 4 without bf16 mode
    (torch.optim.AdamW, whose moments have the weight's type), 2 n + 2 n + 4 n + 8 n + 4 with it.

    Source: runtime/fp16/unfused_optimizer.py, `FP16_UnfusedOptimizer`; unreached parameters get
    gradients of zeros in `_get_gradients_for_reduction`, runtime/engine.py.
    """
    trained = [shape for shape in shapes if shape.trained]
    gradients = _weights(trained, sharding)
    elements = sum(shape.numel for shape in trained)
    return {
        "weights": _weights(shapes, sharding),
        "optimizer": STEP_BYTES * len(trained)
        + (ADAM_BYTES * elements if sharding.bf16 else 2 * gradients),
        "gradients": gradients,
        "masters": MASTER_BYTES * elements if sharding.bf16 else 0,
    }


def _zero_1_2(shapes: Sequence[TensorShape], sharding: Sharding, rank: int) -> dict[str, int]:
    """Trained weights are one flat buffer of A elements, A the next multiple of 2 N; a partition is
    P = A / N. Masters 4 P, Adam 8 P + 4 (one tensor), weights w A and the frozen ones.

    Gradients: a buffer with the whole gradient of every parameter that touches the partition, even
    where the neighbour owns most of it; zeros of their own for unreached parameters, which have
    their place in the buffer too; zeros for the padding.

    Source: runtime/zero/stage_1_and_2.py, `DeepSpeedZeroOptimizer`: `__init__`,
    `copy_grads_in_partition`, `get_all_grad_tensors`, `_get_flat_partition_unpadded`.
    """
    width, ranks = _width_trained(sharding), sharding.num_ranks
    trained = [shape for shape in shapes if shape.trained]
    elements = sum(shape.numel for shape in trained)
    partition = _partition(elements, sharding)
    start, end = partition * rank, partition * (rank + 1)
    own = list(touching(trained, start, end))
    buffer = sum(shape.numel for shape in own) if any(shape.reached for shape in own) else 0
    zeros = sum(shape.numel for shape in own if not shape.reached)
    padding = max(0, end - max(start, elements))
    frozen = [shape for shape in shapes if not shape.trained]
    return {
        "weights": width * partition * ranks + _weights(frozen, sharding),
        "optimizer": ADAM_BYTES * partition + STEP_BYTES,
        "gradients": width * (buffer + zeros + padding),
        "masters": MASTER_BYTES * partition,
        "communication": ZERO_1_2_SCALAR_BYTES,
    }


def _partition(elements: int, sharding: Sharding) -> int:
    return _ceil_div(elements, 2 * sharding.num_ranks) * 2


def _zero_3(shapes: Sequence[TensorShape], sharding: Sharding) -> dict[str, int]:
    """A rank's share of a tensor of n elements is ceil(n / N), padded. P is the sum over trained
    tensors: weights w P and the frozen shares, gradients w P, masters 4 P, Adam 8 P + 4 for every
    sub-group. With more than one rank small parameters, frozen ones too, are whole (and padded)
    beside their shares. The reduction bucket is `reduce_bucket_size` elements, in use or not.

    Source: runtime/zero/partition_parameters.py, `Init._partition_param` and
    `_allgather_params_coalesced`; runtime/zero/parameter_offload.py, `mark_persistent_parameters`;
    runtime/zero/stage3.py, `DeepSpeedZeroOptimizer_Stage3._setup_for_real_optimizer`.
    """
    width, ranks = _width_trained(sharding), sharding.num_ranks
    shares = [_ceil_div(shape.numel, ranks) for shape in shapes]
    own = [share for shape, share in zip(shapes, shares, strict=True) if shape.trained]
    weights = whole = 0
    for shape, share in zip(shapes, shares, strict=True):
        weights += share * _width(shape, sharding)
        if ranks > 1 and shape.numel <= sharding.param_persistence_threshold:
            whole += share * ranks * _width(shape, sharding)
    return {
        "weights": weights + whole,
        "optimizer": ADAM_BYTES * sum(own) + STEP_BYTES * len(sub_groups(own, sharding)),
        "gradients": width * sum(own),
        "masters": MASTER_BYTES * sum(own),
        "communication": width * sharding.reduce_bucket_size + ZERO_3_SCALAR_BYTES,
    }


def touching(shapes: Sequence[TensorShape], start: int, end: int) -> Iterator[TensorShape]:
    """The tensors that have elements in [start, end) of the flat buffer."""
    offset = 0
    for shape in shapes:
        if offset < end and start < offset + shape.numel:
            yield shape
        offset += shape.numel


def sub_groups(shares: Sequence[int], sharding: Sharding) -> list[range]:
    """Indices of the tensors that ZeRO 3 optimises at once, as `_create_fp16_sub_groups` closes
    them: when full, and after the last tensor.
    """
    groups: list[range] = []
    start = filled = 0
    for index, share in enumerate(shares):
        filled += share
        if filled >= sharding.sub_group_size or index == len(shares) - 1:
            groups.append(range(start, index + 1))
            start, filled = index + 1, 0
    return groups


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
