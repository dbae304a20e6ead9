"""Bytes of the tensors that exist in a process, by kind. Each storage is counted once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

_GRADIENT_ATTRIBUTES = (
    "averaged_gradients",
    "all_grad_tensors",
    "grads_in_partition",
    "grad_partitions_flat_buffer",
)
_MASTER_ATTRIBUTES = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Storage address -> bytes."""
    found: dict[int, int] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            found[storage.data_ptr()] = storage.nbytes()
    return found


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    return sum(storages(tensors).values())


def tensors_in(value: Any) -> Iterable[Tensor]:
    """All tensors inside nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def engine_bytes(engine: Any) -> dict[str, int]:
    """Bytes of one DeepSpeed engine now: weights, gradients, optimizer, and fp32 masters if any.

    Call it after the backward and before the step: DeepSpeed frees the gradients in the step.
    """
    module, wrapper = engine.module, engine.optimizer
    inner = getattr(wrapper, "optimizer", wrapper)
    parameters = list(module.parameters())
    weights = storages([*parameters, *module.buffers()])
    shards = [getattr(parameter, "ds_tensor", None) for parameter in parameters]
    weights |= storages(shard for shard in shards if shard is not None)
    optimizer = storages(tensors_in(list(inner.state.values())))
    masters = storages(tensors_in([getattr(wrapper, name, None) for name in _MASTER_ATTRIBUTES]))
    gradients = storages(p.grad for p in parameters if p.grad is not None)
    gradients |= storages(
        tensors_in([getattr(wrapper, name, None) for name in _GRADIENT_ATTRIBUTES])
    )
    counted: set[int] = set()
    sizes = {}
    for kind, found in (
        ("weights", weights),
        ("optimizer", optimizer),
        ("gradients", gradients),
        ("masters", masters),
    ):
        sizes[kind] = sum(size for address, size in found.items() if address not in counted)
        counted |= set(found)
    return {kind: size for kind, size in sizes.items() if size}
