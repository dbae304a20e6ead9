"""From settings to the bytes of one copy on one rank: the one way, for plans and for the benchmark
that holds them against what a real step allocates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actors.train_spec import REDUCE_BUCKET_SIZE
from cluster.planner.architectures import Architecture
from cluster.planner.copies import CopyTensors, copy_tensors
from cluster.planner.disk import disk_copy_bytes
from cluster.planner.offload import Offloaded, offloaded_copy_bytes
from cluster.planner.settings import Settings
from cluster.planner.static import (
    Sharding,
    backward_bucket_bytes,
    frozen_copy_bytes,
    fullest_rank,
    trained_copy_bytes,
)
from cluster.planner.trace import Workload, trace_step, vision_bytes
from trainers.ledger import Kinds

LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's `stage3_max_live_parameters`, its default."""
FLATTENED = 500_000_000
"""Gradient elements that DeepSpeed reduces at once without ZeRO (`allreduce_no_retain`)."""


@dataclass(slots=True)
class CopyPlanner:
    """Copies of one architecture; shapes and traces are taken once for each of their settings."""

    architecture: Architecture
    _tensors: dict[Any, CopyTensors] = field(default_factory=dict)
    _traces: dict[Any, Kinds] = field(default_factory=dict)

    def frozen(self, role: str, settings: Settings) -> Kinds:
        """A copy that only scores, whole on its device."""
        tensors = self._copy(role, settings)
        return frozen_copy_bytes(tensors.shapes, tensors.buffer_bytes)

    def trained(self, role: str, settings: Settings, num_ranks: int) -> Offloaded:
        """What stays of a trained copy on the fullest rank. Gradients are counted where they exist,
        in `step`; with an offloaded optimiser they are among the host's or the disk's bytes.
        """
        tensors = self._copy(role, settings)
        sharding = _sharding(settings, num_ranks, tensors)
        if settings.optimizer_device == "nvme":
            return disk_copy_bytes(tensors.shapes, tensors.buffer_bytes, sharding)
        rank = fullest_rank(tensors.shapes, sharding)
        if settings.optimizer_device == "cpu":
            return offloaded_copy_bytes(
                tensors.shapes,
                tensors.buffer_bytes,
                sharding,
                rank,
                accumulate=settings.accumulate,
            )
        kinds = trained_copy_bytes(tensors.shapes, tensors.buffer_bytes, sharding, rank)
        kinds.pop("gradients")
        return Offloaded(kinds, {})

    def step(self, role: str, settings: Settings, num_ranks: int) -> Kinds:
        """What a training step adds at its peak on the fullest rank.

        In a step of one micro-batch without sharding only the gradients that exist at the
        activations' peak count; a further micro-batch finds all of them there. Without sharding
        DeepSpeed flattens the gradients to reduce them, even on one rank: where activations are
        smaller than that copy, the peak is then.
        """
        tensors = self._copy(role, settings)
        sharding = _sharding(settings, num_ranks, tensors)
        keep = settings.zero_stage == 0 and not settings.accumulate
        kinds = dict(self._trace(role, settings, train=True, keep_gradients=keep))
        if not keep:
            kinds["gradients"] = _gradients(tensors, settings, sharding)
        kinds["communication"] = backward_bucket_bytes(sharding) + _gathered(tensors, sharding)
        if settings.optimizer_device == "nvme":  # a bucket's gradients in float32, on their way
            kinds["communication"] += 4 * sharding.reduce_bucket_size
        if settings.zero_stage == 0:
            flattened = min(FLATTENED, tensors.num_trained) * (2 if settings.bf16 else 4)
            reducing = {
                "gradients": _gradients(tensors, settings, sharding),
                "communication": flattened,
            }
            kinds = max(kinds, reducing, key=lambda moment: sum(moment.values()))
        return kinds

    def scoring(self, role: str, settings: Settings) -> Kinds:
        """What a forward without gradients adds at its peak."""
        return self._trace(role, settings, train=False, keep_gradients=False)

    def _copy(self, role: str, settings: Settings) -> CopyTensors:
        key = (
            role,
            settings.bf16,
            settings.lora_rank,
            settings.lora_vision,
            settings.freeze,
            settings.num_banned,
            settings.images > 0,
            settings.critic,
        )
        if key not in self._tensors:
            tensors = copy_tensors(
                self.architecture,
                role,
                bf16=settings.bf16,
                lora_rank=settings.lora_rank,
                lora_vision=settings.lora_vision,
                freeze=settings.freeze,
                num_banned=settings.num_banned,
                images=settings.images > 0,
            )
            if role == "critic" and settings.critic == "shared_base":
                # The base and its buffers are the policy's.
                own = tuple(shape for shape in tensors.shapes if shape.trained)
                tensors = CopyTensors(shapes=own, buffer_bytes=0)
            self._tensors[key] = tensors
        return self._tensors[key]

    def _trace(self, role: str, settings: Settings, *, train: bool, keep_gradients: bool) -> Kinds:
        """Activations and logits at the peak of one micro-batch, and gradients if kept."""
        key = (
            role,
            train,
            keep_gradients,
            settings.bf16,
            settings.gradient_checkpointing and train,
            settings.lora_rank,
            settings.lora_vision,
            settings.freeze,
            settings.micro_batch_size,
            settings.text_tokens,
            settings.response_tokens,
            settings.images,
            settings.image_tokens,
            settings.chunk_size,
        )
        if key not in self._traces:
            each = settings.image_tokens
            image_tokens = settings.images * (
                self.architecture.image_tokens() if each is None else each
            )
            kinds = trace_step(
                self.architecture,
                role,
                Workload(
                    rows=settings.micro_batch_size,
                    prompt_tokens=settings.text_tokens + image_tokens,
                    response_tokens=settings.response_tokens,
                    chunk_size=settings.chunk_size,
                ),
                bf16=settings.bf16,
                gradient_checkpointing=settings.gradient_checkpointing,
                lora_rank=settings.lora_rank,
                freeze=settings.freeze,
                train=train,
                keep_gradients=keep_gradients,
            )
            trained = train and (not settings.lora_rank or settings.lora_vision)
            trained &= "vision" not in settings.freeze
            kinds["activations"] = kinds.get("activations", 0) + vision_bytes(
                self.architecture.config,
                settings.micro_batch_size * image_tokens,
                # Checkpointing keeps a tower's layers as it keeps the language model's.
                trained=trained and not settings.gradient_checkpointing,
                bytes_per_element=2 if settings.bf16 else 4,
            )
            self._traces[key] = kinds
        return self._traces[key]


def _sharding(settings: Settings, num_ranks: int, tensors: CopyTensors) -> Sharding:
    return Sharding(
        zero_stage=settings.zero_stage,
        num_ranks=num_ranks,
        bf16=settings.bf16,
        reduce_bucket_size=min(REDUCE_BUCKET_SIZE, tensors.num_trained),
    )


def _gradients(tensors: CopyTensors, settings: Settings, sharding: Sharding) -> int:
    """Bytes of all gradients on the device, at most; offloaded ones leave it as they are made."""
    whole = tensors.num_trained * (2 if sharding.bf16 else 4)
    if sharding.zero_stage == 1 and settings.accumulate:
        return whole  # every rank keeps them until the last micro-batch is reduced
    if settings.optimizer_device != "device":
        return 0
    rank = fullest_rank(tensors.shapes, sharding)
    return trained_copy_bytes(tensors.shapes, 0, sharding, rank)["gradients"]


def _gathered(tensors: CopyTensors, sharding: Sharding) -> int:
    """Whole parameters that ZeRO 3 holds around the layer at work, at most
    `stage3_max_live_parameters` elements.
    """
    if sharding.zero_stage != 3 or sharding.num_ranks == 1:
        return 0
    return min(LIVE_PARAMETERS, tensors.num_parameters) * (2 if sharding.bf16 else 4)
