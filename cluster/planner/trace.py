"""Traced memory: the real training forward and backward on fake tensors, counted as they live.

Fake tensors have shapes and dtypes and no memory, so a model of 70 billion parameters is traced on
a laptop. The language path is the real module's (`actors.modules`: backbone, chunked log-softmax,
value head), with image tokens as ordinary tokens; the vision tower decides its shapes from values,
which fake tensors lack, so it enters as an analytic term.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from actors.lora import add_adapters
from actors.modules import CriticModule, PolicyModule
from actors.parts import freeze as freeze_parts
from actors.tracker import StorageTracker
from cluster.planner.architectures import Architecture, meta_model
from cluster.planner.image_tokens import patches_per_token
from trainers.batch import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One micro-batch."""

    rows: int
    prompt_tokens: int
    """Image tokens included."""
    response_tokens: int
    """Target tokens at the end of each row."""
    chunk_size: int = 512
    """Target tokens whose logits exist at once."""


def trace_step(
    architecture: Architecture,
    role: str,
    workload: Workload,
    *,
    bf16: bool = True,
    gradient_checkpointing: bool = True,
    lora_rank: int = 0,
    freeze: tuple[str, ...] = (),
    train: bool = True,
    keep_gradients: bool = False,
) -> dict[str, int]:
    """Peak bytes beyond the weights of one micro-batch, by kind, without the vision tower.

    Args:
        architecture: the vision-language model.
        role: `policy` (also for a reference) or `critic`.
        workload: rows and tokens.
        bf16: weights and activations in bfloat16, else float32.
        gradient_checkpointing: layers are computed again in the backward.
        lora_rank: above 0, adapters on the language model and the base frozen.
        freeze: parts that are not trained; the way back to what comes before them is kept.
        train: with a backward; without, a scoring forward.
        keep_gradients: they stay as they are made, as in a step of one micro-batch under ZeRO-0;
            otherwise they are taken away at once, as ZeRO moves them to a shard, or as they are
            added to those of earlier micro-batches, which whoever calls counts in full.

    Returns:
        `activations`, `logits` and, when kept, `gradients` (those made before the peak), bytes.
    """
    vlm: Any = meta_model(replace(architecture, config=_static_rope(architecture.config)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        _to_fake(vlm, torch.bfloat16 if bf16 else torch.float32)
        if lora_rank:
            add_adapters(vlm, rank=lora_rank)
        freeze_parts(vlm, freeze)
        if "language" in freeze and train:
            vlm.enable_input_require_grads()  # as features do that a part before has learned
        module: nn.Module = (
            CriticModule(vlm)
            if role == "critic"
            else PolicyModule(vlm, banned_ids=[0], chunk_size=workload.chunk_size)
        )
        if gradient_checkpointing and train:
            vlm.gradient_checkpointing_enable({"use_reentrant": False})
        module.train()
        held = [*module.parameters(), *module.buffers()]
        tracker = StorageTracker({"weights": held}, architecture.vocab_size)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(
                    (lambda p: tracker.name("gradients", [p.grad]))
                    if keep_gradients
                    else (lambda p: setattr(p, "grad", None))
                )
        batch = _batch(workload)
        with tracker, torch.set_grad_enabled(train):
            outputs = module(batch)
            values: Tensor = outputs.values_BR if role == "critic" else outputs.logprobs_BR
            if train:
                values.sum().backward()
    return {kind: size for kind, size in tracker.at_peak().items() if kind != "weights"}


def _static_rope(config: Any) -> Any:
    """The config without rotary frequencies that depend on the longest position: as many bytes,
    and no look at values.
    """
    config = copy.deepcopy(config)
    rope = getattr(config.get_text_config(), "rope_parameters", None)
    if isinstance(rope, dict) and rope.get("rope_type") == "dynamic":
        rope["rope_type"] = "default"
    return config


def _to_fake(module: nn.Module, dtype: torch.dtype) -> None:
    """Give every meta tensor a fake one; tied parameters stay one. Call it in a fake mode."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(torch.empty(parameter.shape, dtype=dtype))
            setattr(part, name, made[id(parameter)])
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _batch(workload: Workload) -> Batch:
    """A batch of the right shapes; its values do not matter, fake tensors have none."""
    rows, length = workload.rows, workload.prompt_tokens + workload.response_tokens
    targets = rows * workload.response_tokens
    return Batch(
        input_ids_BT=torch.zeros(rows, length, dtype=torch.long),
        attention_mask_BT=torch.ones(rows, length, dtype=torch.long),
        positions_N3=torch.zeros(targets, 3, dtype=torch.long),
        targets_N=torch.zeros(targets, dtype=torch.long),
        last_B=torch.zeros(rows, dtype=torch.long),
        mask_BR=torch.ones(rows, workload.response_tokens, dtype=torch.bool),
        model_inputs={},
        tokens={},
        scalars={},
    )


def vision_bytes(config: Any, image_tokens: int, *, trained: bool, bytes_per_element: int) -> int:
    """Analytic activation bytes of the vision tower at the peak.

    A transformer layer without dropout and with fused attention keeps for its backward, per patch,
    8 vectors of the tower's width (inputs and outputs of both norms, q, k, v, attention's output)
    and 2 of the MLP's (before and after the activation; 4 in a gated MLP): the 34 s b h of
    Korthikanti et al. (arXiv 2205.05198, section 4.1) less what dropout and scores keep. Without a
    backward, or with checkpointing, one layer's vectors exist at a time.

    Args:
        config: the vision-language model's configuration.
        image_tokens: of the language sequence, all images of the micro-batch.
        trained: whether all layers' vectors are kept for a backward.
        bytes_per_element: 2 for bfloat16, 4 for float32.
    """
    vision = config.vision_config
    width = int(vision.hidden_size)
    inner = int(getattr(vision, "intermediate_size", None) or width * vision.mlp_ratio)
    layers = int(getattr(vision, "num_hidden_layers", None) or vision.depth)
    gated = "silu" in str(getattr(vision, "hidden_act", ""))
    patches = image_tokens * patches_per_token(config)
    per_layer = patches * (8 * width + (4 if gated else 2) * inner) * bytes_per_element
    return int(per_layer * (layers if trained else 1))
