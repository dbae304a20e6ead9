"""What a copy's actor loads, and DeepSpeed's configuration for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from actors.micro_batches import Forwards
from trainers.logprobs import CHUNK_SIZE

REDUCE_BUCKET_SIZE = 500_000_000
"""Elements; DeepSpeed's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """What to load into a `TrainActor`, or a `ReferenceActor`."""

    role: str
    """`policy`, `critic` or `reward`; `reference` is a policy that is frozen."""
    model_dir: str
    image_root: str
    temperature: float = 1.0
    zero_stage: int = 0
    micro_batch_size: int = 64
    """Rows per forward and backward; groups are never split."""
    micro_batch_tokens: int = 0
    """Above 0, tokens per forward and backward, padding counted, in place of rows."""
    packing: bool = False
    """Rows lie end to end, without padding (`actors.packing`)."""
    share_images: bool = False
    """An image passes the tower once in a forward, however many rows have it."""
    chunk_size: int = CHUNK_SIZE
    """Target tokens whose logits exist at once."""
    gradient_clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    frozen: tuple[str, ...] = ()
    """Parts that are not trained: `vision`, `projector`, `language` (`actors.parts`)."""
    muon_ratio: float | None = None
    """With a ratio, DeepSpeed's Muon takes the weight matrices, at this multiple of the learning
    rate, and AdamW the rest (embeddings, head, norms). Without, AdamW takes all."""
    bf16: bool = False
    gradient_checkpointing: bool = False
    liger: bool = False
    """Liger's fused kernels inside the layers."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where optimiser states and masters are: on the device, in host memory, or on a disk."""
    nvme_path: str | None = None
    lora_rank: int = 0
    """Above 0 the VLM is frozen and adapters of this rank are trained, and the head, if any."""
    lora_alpha: float | None = None
    """Twice the rank by default."""
    lora_vision: bool = False
    """Adapters on vision tower and projector, too."""
    lora_seed: int = 0
    """Of the adapters' start."""

    def forwards(self, rows: int | None = None) -> Forwards:
        """How rows are laid into forwards; `rows` in place of the micro-batch's."""
        return Forwards(
            rows=rows or self.micro_batch_size,
            tokens=self.micro_batch_tokens,
            packing=self.packing,
            share_images=self.share_images,
        )


def deepspeed_config(spec: TrainSpec, num_trained: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a copy with so many trained elements."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spec.gradient_clip,
        "zero_optimization": _zero_config(spec, num_trained),
        "zero_force_ds_cpu_optimizer": torch.cuda.is_available(),
        "bf16": {"enabled": spec.bf16},
        "optimizer": _optimizer_config(spec),
        "steps_per_print": 10**9,
    }


def _zero_config(spec: TrainSpec, num_trained: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "stage": spec.zero_stage,
        # DeepSpeed allocates the bucket whole, 2 GB by default, however small the model.
        "reduce_bucket_size": min(REDUCE_BUCKET_SIZE, num_trained),
    }
    if spec.offload_optimizer != "none":
        config["offload_optimizer"] = {"device": spec.offload_optimizer}
    if spec.offload_optimizer == "nvme":
        config["offload_optimizer"]["nvme_path"] = spec.nvme_path
    return config


def _optimizer_config(spec: TrainSpec) -> dict[str, Any]:
    params: dict[str, Any] = {
        "lr": 0.0,  # set before every step
        "betas": list(spec.betas),
        "weight_decay": spec.weight_decay,
        # On a GPU machine DeepSpeed's own Adam steps in host memory, many times as fast as torch's.
        "torch_adam": spec.offload_optimizer == "none" or not torch.cuda.is_available(),
    }
    if spec.muon_ratio is not None:
        return {"type": "Muon", "params": params}
    if params["torch_adam"] and torch.cuda.is_available():
        params["fused"] = True  # one kernel for all parameters, which needs no compiler
    return {"type": "AdamW", "params": params}
