"""What is planned for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainers.roles import CriticMode, ReferenceMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Names as in a run's config where it has them."""

    zero_stage: int = 3
    bf16: bool = True
    lora_rank: int = 0
    lora_vision: bool = False
    freeze: tuple[str, ...] = ()
    """Parts of policy and critic that are not trained: `vision`, `projector`, `language`."""
    gradient_checkpointing: bool = True
    reference: ReferenceMode = "own_copy"
    critic: CriticMode = "own_copy"
    micro_batch_size: int = 2
    """Rows (a preference pair is two)."""
    accumulate: bool = True
    """Whether an optimiser step has further micro-batches, whose gradients are already there."""
    response_tokens: int = 512
    text_tokens: int = 128
    """Of the prompt, beside the image."""
    images: int = 1
    image_tokens: int | None = None
    """Of one image; those of a usual photograph by default."""
    num_banned: int = 0
    """Token ids that the sampler is forbidden, 8 bytes each in policy and reference."""
    max_num_seqs: int = 32
    """Responses that the rollout engine and the judge write at once."""
    chunk_size: int = 512
    """Target tokens whose logits exist at once."""
    kv_cache_bytes: int | None = None
    """Of each engine; by default what so many responses take at full length."""
    judge: bool = True
    """Whether a model judges: its engine and its scoring copy, PPO's reward copy."""
    sleep: bool = False
    """The rollout engine and the judge's leave the GPU while others work."""
    time_slice: bool = False
    """One copy on the GPU at a time, the others in host memory."""
    optimizer_device: Literal["device", "cpu", "nvme"] = "device"
