"""Bytes of the tensors that a process holds, by kind. Each storage is counted once.

What a DeepSpeed 0.19.8 engine holds between the last backward and the step; its classes and where
they keep it:

* ZeRO 0 in float32 (`torch.optim.AdamW` itself): gradients and states at each parameter.
* ZeRO 0 in bf16 (`FP16_UnfusedOptimizer`): a float32 master and states per parameter.
* ZeRO 1 and 2 (`DeepSpeedZeroOptimizer`): one flat buffer of trained weights, and per rank a flat
  partition of masters and states and a buffer of the gradients that touch the partition.
* ZeRO 3 (`DeepSpeedZeroOptimizer_Stage3`): partitions of everything, whole copies of the small
  (persistent) parameters, and the bucket in which gradients are reduced.

`cluster.planner.static` predicts the same numbers from shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

KINDS = ("shared_weights", "weights", "optimizer", "gradients", "masters", "communication")
"""A storage that belongs to two kinds is counted as the first of them."""

_GRADIENT_ATTRIBUTES = (
    "averaged_gradients",
    "all_grad_tensors",
    "grads_in_partition",
    "grad_partitions_flat_buffer",
    "fp32_groups_gradients_flat",
)
_MASTER_ATTRIBUTES = (
    "single_partition_of_fp32_groups",
    "fp32_partitioned_groups_flat",
    "fp32_groups_flat_partition",
    "fp32_groups",
)
_STAGED_STATE_ATTRIBUTE = "_muon_pending_momentum"


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Storage address -> bytes. A view counts its whole storage, as nothing less can be freed."""
    found: dict[int, int] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        # A meta tensor has a size and no memory.
        if storage.nbytes() and tensor.device.type != "meta":
            found[storage.data_ptr()] = storage.nbytes()
    return found


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    return sum(storages(tensors).values())


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and of all its buffers, also those a state dict leaves out."""
    return storage_bytes([*module.parameters(), *module.buffers()])


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors inside nested lists, tuples, sets and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from tensors_in(item)


def bytes_by_kind(held: Mapping[str, Iterable[Tensor]]) -> dict[str, int]:
    """Bytes of tensors by kind, each storage once; a kind without bytes is left out."""
    counted: set[int] = set()
    sizes: dict[str, int] = {}
    for kind in KINDS:
        found = storages(held.get(kind, ()))
        size = sum(size for address, size in found.items() if address not in counted)
        counted |= set(found)
        if size:
            sizes[kind] = size
    return sizes


def engine_tensors(engine: Any) -> dict[str, list[Tensor]]:
    """What one DeepSpeed engine holds now, by kind (`KINDS`); a tensor may be under two kinds.

    Call it after the backward and before the step, from the second step on: DeepSpeed frees the
    gradients in the step, and Adam's states and ZeRO-3's whole copies of small parameters are as
    the first step leaves them.
    """
    module, wrapper = engine.module, engine.optimizer
    inner = getattr(wrapper, "optimizer", wrapper)
    parameters = list(module.parameters())
    masters = _attributes(wrapper, _MASTER_ATTRIBUTES)
    # A parameter that ZeRO-3 partitioned is empty itself; its share is `ds_tensor`.
    shards = [getattr(parameter, "ds_tensor", None) for parameter in parameters]
    gradients = [parameter.grad for parameter in [*parameters, *masters]]
    gradients += [getattr(parameter, "grad_accum", None) for parameter in parameters]
    return {
        "weights": [*parameters, *module.buffers(), *tensors_in(shards)],
        "optimizer": [
            *tensors_in(list(inner.state.values())),
            *_attributes(wrapper, (_STAGED_STATE_ATTRIBUTE,)),
        ],
        "gradients": [*tensors_in(gradients), *_attributes(wrapper, _GRADIENT_ATTRIBUTES)],
        "masters": masters,
        "communication": list(_held_by_deepspeed(wrapper, set())),
    }


def _attributes(wrapper: Any, names: Iterable[str]) -> list[Tensor]:
    return list(tensors_in([getattr(wrapper, name, None) for name in names]))


def _held_by_deepspeed(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Tensors in containers and DeepSpeed's own objects below `value`: whatever has no name above,
    such as buckets and parameters in flight, is found here, as are most of those that have one.
    """
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in seen or isinstance(value, nn.Module):
        return
    seen.add(id(value))
    if isinstance(value, dict):
        for item in value.values():
            yield from _held_by_deepspeed(item, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _held_by_deepspeed(item, seen)
    if type(value).__module__.startswith("deepspeed."):
        yield from _held_by_deepspeed(getattr(value, "__dict__", None), seen)
