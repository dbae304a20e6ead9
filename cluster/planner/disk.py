"""Bytes of a trained copy whose optimiser DeepSpeed keeps on a disk (`--offload nvme`, ZeRO 3).

Between the last backward and the step, as `cluster.planner.static`, whose table this continues. A
rank optimises its partition in sub-groups, one after another. With G elements in a sub-group, M in
the largest of them, P in the partition and w bytes per weight:

* Disk: for every sub-group that takes 1 MiB or more in float32, 12G of Adam and masters, and 4 for
  each element of a gradient whose share takes 1 MiB.
* Host: wP in which gradients arrive, and four page-locked buffers through which all of it passes,
  16M. Sub-groups under 1 MiB stay there, as with `--offload optimizer`.
* Device: weights and the reduction bucket, as without. In bf16 also the float32 copies of smaller
  gradients, and of those whose end is not aligned, which are in one piece.

Limiting case: full fine-tuning in bf16 on one rank, sub-groups small beside the partition: 2 bytes
per parameter in host memory, where `--offload optimizer` has 18.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.planner.offload import Offloaded, offloaded_copy_bytes
from cluster.planner.static import MASTER_BYTES, Sharding, TensorShape, sub_groups

SWAPPED_BYTES = 2**20
"""The least that goes to the disk (`MIN_AIO_BYTES`, and a block of its reads)."""
ALIGNED_ELEMENTS = 1024 // MASTER_BYTES
"""What is read and written ends at a multiple of these (`AIO_ALIGNED_BYTES`, one thread a file)."""
NUM_BUFFERS = 4
"""`buffer_count`: master, gradient and two moments."""
NUM_FILES = 3
"""Of a sub-group: master and two moments."""


def disk_copy_bytes(
    shapes: Sequence[TensorShape], buffers_bytes: int, sharding: Sharding
) -> Offloaded:
    """Bytes of a trained copy on one rank with optimiser states and masters on a disk.

    Source: runtime/zero/stage3.py, `_create_fp32_partitions` and
    `_offload_grad_partition_at_boundary`; runtime/swap_tensor/optimizer_utils.py.

    Args:
        shapes, buffers_bytes, sharding: as for `trained_copy_bytes`; ranks are alike.

    Raises:
        ValueError: another stage than 3, or as `trained_copy_bytes`.
    """
    if sharding.zero_stage != 3:
        raise ValueError(f"ZeRO {sharding.zero_stage} has no optimiser on a disk, only ZeRO 3 has")
    held = offloaded_copy_bytes(shapes, buffers_bytes, sharding, accumulate=True)
    device, host = held.device, held.host
    trained = [shape for shape in shapes if shape.trained]
    shares = [-(-shape.numel // sharding.num_ranks) for shape in trained]
    groups = sub_groups(shares, sharding)
    disk = 0
    for group in groups:
        elements = sum(shares[index] for index in group)
        if MASTER_BYTES * elements < SWAPPED_BYTES:
            continue
        disk += NUM_FILES * MASTER_BYTES * _aligned(elements)
        host["optimizer"] -= 2 * MASTER_BYTES * elements
        host["masters"] -= MASTER_BYTES * elements
        host["gradients"] -= MASTER_BYTES * elements
        for index in group:
            share = shares[index]
            swapped = MASTER_BYTES * share >= SWAPPED_BYTES and trained[index].reached
            rest = share % ALIGNED_ELEMENTS if swapped else share
            if swapped:
                disk += MASTER_BYTES * (share - rest)
            if rest and trained[index].reached and sharding.bf16:
                device["communication"] += MASTER_BYTES * share
    largest = max(sum(shares[index] for index in group) for group in groups)
    host["communication"] = NUM_BUFFERS * MASTER_BYTES * _aligned(largest)
    return Offloaded(device, {kind: size for kind, size in host.items() if size}, disk)


def _aligned(elements: int) -> int:
    return -(-elements // ALIGNED_ELEMENTS) * ALIGNED_ELEMENTS
