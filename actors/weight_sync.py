"""Moving a copy's weights: checkpoint names, buckets, checksums.

vLLM wants the names of the checkpoint that the model was loaded from, which differ from the names
in memory; transformers can revert them. Buckets bound the size of one message, and each carries a
checksum, so that a corrupted transfer is an error and not a slightly different policy.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from actors.lora import adapters as adapted_layers
from actors.lora import split_adapters
from actors.progress import note

_AS_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16}


@dataclass(frozen=True, slots=True)
class Bucket:
    """Some weights as raw arrays. `dtypes` are torch's names, since numpy has no bfloat16."""

    names: tuple[str, ...]
    arrays: tuple[np.ndarray, ...]
    dtypes: tuple[str, ...]
    checksum: int | None
    """None where it was not taken: it costs a pass over the bytes on either side."""


class CorruptBucketError(RuntimeError):
    """A bucket arrived with other bytes than it was sent with."""


Adapters = Literal["merged", "beside", "alone"]
"""How they leave a copy: added to the weights that they change, after the base's weights, or
without them."""
GATHER_BYTES = 2**28
"""Of ZeRO-3's partitioned parameters that are whole at one time, unless one alone is larger."""


def checkpoint_tensors(
    vlm: Any,
    *,
    gather: bool = False,
    keep: bool = True,
    gather_bytes: int = GATHER_BYTES,
    adapters: Adapters = "merged",
) -> Iterator[tuple[str, Tensor]]:
    """Parameters under the names of the checkpoint that `vlm` was loaded from, detached.

    Merged, each adapted weight is computed when its turn comes and is a new tensor; the module
    stays as it is. Otherwise an adapter is two tensors, named as its layer in the checkpoint is:
    `layer.lora_A.weight`, and `layer.lora_B.weight` with the scaling in it. With `gather` (ZeRO-3)
    the partitioned parameters are gathered first, `gather_bytes` at a time, and copied to host
    memory while they are whole: a rank that keeps them has the whole model there before the first
    is given. Every rank must call; one that does not `keep` them gets nothing.
    """
    state = {name: tensor.detach() for name, tensor in vlm.state_dict().items()}
    if gather:
        parameters = dict(vlm.named_parameters(remove_duplicate=False))
        if adapters == "alone":
            parameters = {
                f"{name}.{part}.weight": getattr(layer, part).weight
                for name, layer in adapted_layers(vlm).items()
                for part in ("lora_A", "lora_B")
            }
        state |= _gathered(parameters, keep, gather_bytes)
    if not keep:
        return iter(())
    if adapters == "merged":
        return _weights(vlm, state, merge=True)
    base = () if adapters == "alone" else _weights(vlm, state, merge=False)
    return chain(base, _adapters(vlm, state))


def _gathered(named: dict[str, Any], keep: bool, gather_bytes: int) -> dict[str, Tensor]:
    """Copies of parameters by their names in memory; empty for a rank that keeps none."""
    import deepspeed

    names: dict[Any, list[str]] = {}
    for name, parameter in named.items():
        names.setdefault(parameter, []).append(name)
    copies: dict[str, Tensor] = {}
    for part in _parts(list(names), gather_bytes):
        with deepspeed.zero.GatheredParameters(part):
            for parameter in part if keep else ():
                # Inside: outside, the storage is another's.
                copy = parameter.detach().to("cpu", copy=True)
                copies |= dict.fromkeys(names[parameter], copy)
    return copies


def _parts(parameters: list[Any], most_bytes: int) -> Iterator[list[Any]]:
    """In order; the same on every rank, which only has a share of each."""
    part: list[Any] = []
    size = 0
    for parameter in parameters:
        whole = getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        if part and size + whole > most_bytes:
            yield part
            part, size = [], 0
        part.append(parameter)
        size += whole
    if part:
        yield part


def _weights(vlm: Any, state: dict[str, Tensor], *, merge: bool) -> Iterator[tuple[str, Tensor]]:
    from transformers.core_model_loading import revert_weight_conversion

    plain, changes = split_adapters(vlm, state)
    # Renaming keeps the storage, so that a weight is still known by its address afterwards.
    by_address = {plain[name].data_ptr(): change for name, change in changes.items()}
    # A tied weight has two names in memory and one in the checkpoint.
    for tied in getattr(vlm, "all_tied_weights_keys", {}):
        plain.pop(tied, None)
    for name, tensor in revert_weight_conversion(vlm, plain).items():
        change = by_address.pop(tensor.data_ptr(), None)
        yield name, change.added_to(tensor) if change and merge else tensor
    assert not by_address, f"{len(by_address)} adapters were not merged"


def _adapters(vlm: Any, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    from transformers.core_model_loading import revert_weight_conversion

    _, changes = split_adapters(vlm, state)
    by_address = {change.a.data_ptr(): change for change in changes.values()}
    # A goes by the name of the weight that it changes, and keeps its storage on the way.
    named = {name: change.a for name, change in changes.items()}
    for name, a in revert_weight_conversion(vlm, named).items():
        change = by_address.pop(a.data_ptr())
        layer = name.removesuffix(".weight")
        yield f"{layer}.lora_A.weight", a
        yield f"{layer}.lora_B.weight", change.scaling * change.b
    assert not by_address, f"{len(by_address)} adapters have no name in the checkpoint"


def make_buckets(
    tensors: Iterable[tuple[str, Tensor]], bucket_bytes: int, *, checked: bool = True
) -> list[Bucket]:
    """Group tensors in order; a bucket holds at most `bucket_bytes`, or one larger tensor."""
    buckets: list[Bucket] = []
    current: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in tensors:
        if current and size + tensor.nbytes > bucket_bytes:
            buckets.append(_bucket(current, checked))
            current, size = [], 0
        current.append((name, tensor))
        size += tensor.nbytes
    if current:
        buckets.append(_bucket(current, checked))
    return buckets


def open_bucket(bucket: Bucket) -> list[tuple[str, Tensor]]:
    """The named tensors of a bucket, to be read: they are its own memory, which may be the object
    store's.

    Raises:
        CorruptBucketError: the checksum does not match; names the first tensor.
    """
    if bucket.checksum is not None and _checksum(bucket.names, bucket.arrays) != bucket.checksum:
        raise CorruptBucketError(
            f"weight sync: the bucket that starts with {bucket.names[0]} was corrupted in transit; "
            "the engine keeps its old weights"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return [
            (name, torch.from_numpy(array).view(getattr(torch, dtype)))
            for name, array, dtype in zip(bucket.names, bucket.arrays, bucket.dtypes, strict=True)
        ]


def _bucket(tensors: list[tuple[str, Tensor]], checked: bool) -> Bucket:
    names = tuple(name for name, _ in tensors)
    note(f"weight_buckets: packed up to {names[-1]}")
    # A copy before numpy sees it: a storage that numpy has seen can no longer be parked.
    copies = [tensor.to("cpu", copy=True).contiguous() for _, tensor in tensors]
    arrays = tuple(copy.view(_AS_BITS.get(copy.dtype, copy.dtype)).numpy() for copy in copies)
    dtypes = tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors)
    return Bucket(names, arrays, dtypes, _checksum(names, arrays) if checked else None)


def tensor_checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes, which are copied to the host for it."""
    flat = tensor.detach().to("cpu").contiguous().view(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data) if flat.numel() else 0


def _checksum(names: tuple[str, ...], arrays: tuple[np.ndarray, ...]) -> int:
    value = 0
    for name, array in zip(names, arrays, strict=True):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, value)
    return value
