"""One LoRA adapter inside a vLLM engine, given to it as tensors and served with every request.

vLLM holds adapters beside the weights, on the language model's linear layers. It reads them from
folders; here they are put into its manager directly, under the names of the checkpoint, which vLLM
maps to its own as it does those of weights.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.lora import linear_layers
from actors.vllm_api import layer_names, serves_towers, vllm_version
from trainers.data.errors import UserError

PARTS = (".lora_A.weight", ".lora_B.weight")
ROOMS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM's `max_lora_rank` can be."""
TOWERS = ("qwen2_5_vl", "smolvlm")
"""Families whose vision tower vLLM serves adapters on, as far as was tried. It claims more: in
LLaVA-1.5 it counts 16 tokens of an image where CLIP has 17, and dies in the first answer.
"""
NUMBER = 1
"""Of the only adapter."""


def is_adapter(name: str) -> bool:
    """Whether this is a tensor of an adapter, by its name in a sync."""
    return name.endswith(PARTS)


def engine_options(model_dir: str | Path, rank: int, *, vision: bool = False) -> dict[str, Any]:
    """Settings of vLLM for one adapter of up to `rank`; none for 0.

    By default vLLM makes room on embeddings and head, too. For the language model alone it is told
    the layers' last names; those of a tower may be of layers that it cannot adapt, which it
    refuses.
    """
    if not rank:
        return {}
    if vision and not serves_towers(vllm_version()):
        raise UserError(
            f"train.lora_sync=adapter: vLLM {vllm_version()} serves no adapters on a vision tower, "
            "0.32 does; set train.lora_sync=merged, or train.lora_vision=false"
        )
    options: dict[str, Any] = {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": served_rank(rank),
    }
    # It warns of every layer that it leaves out; that none is missing is checked in `load`.
    logging.getLogger("vllm.lora.model_manager").setLevel(logging.ERROR)
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(model_dir)
    if vision:
        if config.model_type not in TOWERS:
            raise UserError(
                f"train.lora_sync=adapter: {model_dir}: adapters on the vision tower of a "
                f"{config.model_type} model cannot be served (of {', '.join(TOWERS)} they can); "
                "set train.lora_sync=merged, or train.lora_vision=false"
            )
        return options | {"enable_tower_connector_lora": True}
    with torch.device("meta"):
        vlm = AutoModelForImageTextToText.from_config(config)
    layers = linear_layers(vlm.get_decoder())
    return options | {"lora_target_modules": sorted({name.rpartition(".")[2] for name in layers})}


def served_rank(rank: int) -> int:
    """The smallest rank that vLLM has room for and that is no less than `rank`.

    Raises:
        UserError: there is none.
    """
    for room in ROOMS:
        if room >= rank:
            return room
    raise UserError(
        f"train.lora_rank={rank}: vLLM serves adapters up to rank {ROOMS[-1]}; set "
        "train.lora_sync=merged"
    )


def refusal(model_dir: str | Path, error: ValueError) -> UserError | None:
    """The line for a family that vLLM has no adapters for, if that is what `error` says."""
    if "does not support LoRA" not in str(error):
        return None
    return UserError(
        f"train.lora_sync=adapter: {model_dir}: vLLM says that {error} Set train.lora_sync=merged"
    )


def request() -> Any:
    """What prompts are sent with to be answered by the adapter."""
    from vllm.lora.request import LoRARequest

    # The number is known to the engine, so that nothing is read from the path.
    return LoRARequest("policy", NUMBER, "given as tensors")


def load(worker: Any, tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Inside a worker: replace the adapter.

    Raises:
        RuntimeError: layers that take adapters got none, or the reverse, and would compute as the
            base does.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.model_executor.layers.linear import LinearBase

    served = worker.model_runner.lora_manager
    manager = served._adapter_manager
    rank = max(tensor.shape[0] for name, tensor in tensors if name.endswith(PARTS[0]))
    adapter = LoRAModel.from_lora_tensors(
        NUMBER,
        dict(tensors),
        # The scaling is in B: alpha over rank is 1.
        PEFTHelper(r=rank, lora_alpha=rank, target_modules=[]),
        device="cpu",
        dtype=served.lora_config.lora_dtype,
        weights_mapper=layer_names(manager.model),
    )
    wanted = {
        part
        for name, module in manager.modules.items()
        if isinstance(module.base_layer, LinearBase)  # and no embedding
        for part in manager.packed_modules.get(name, [name])
    }
    whole = {
        name
        for name, layer in adapter.loras.items()
        if layer.lora_a is not None and layer.lora_b is not None
    }
    # A tower's layers that nobody reads are not in the engine; their B has stayed zero.
    lost = {name for name in adapter.loras.keys() - wanted if _changes(adapter.loras[name])}
    if wanted - whole or lost:
        raise RuntimeError(
            f"weight sync: the adapter does not fit the engine's layers; missing "
            f"{sorted(wanted - whole)[:3]}, unknown {sorted(lost)[:3]}"
        )
    for name in adapter.loras.keys() - wanted:
        del adapter.loras[name]
    manager.remove_adapter(NUMBER)
    manager.add_adapter(adapter)
    manager.activate_adapter(NUMBER)


def _changes(layer: Any) -> bool:
    return layer.lora_b is None or bool(layer.lora_b.any())


def buffers(model: Any) -> list[Tensor]:
    """The tensors that an engine computes its adapter with; none without."""
    return [
        tensor
        for module in model.modules()
        for name in ("lora_a_stacked", "lora_b_stacked")
        for tensor in getattr(module, name, ())
    ]
