"""The tensors of each copy, from the real modules on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.planner.architectures import Architecture, meta_model
from cluster.planner.reached import unreached
from cluster.planner.static import TensorShape


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyTensors:
    """What one copy is made of."""

    shapes: tuple[TensorShape, ...]
    """Parameters, tied ones once."""
    buffer_bytes: int

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters."""
        return sum(shape.numel for shape in self.shapes)

    @property
    def num_trained(self) -> int:
        """Elements of the trained ones."""
        return sum(shape.numel for shape in self.shapes if shape.trained)


def copy_tensors(
    architecture: Architecture,
    role: str,
    *,
    bf16: bool,
    lora_rank: int = 0,
    lora_vision: bool = False,
    freeze: tuple[str, ...] = (),
    num_banned: int = 0,
    images: bool = True,
) -> CopyTensors:
    """The tensors of `role`'s copy of a model.

    Args:
        architecture: the model.
        role: `policy`, `critic`, `reference` or `reward`.
        bf16: parameters in bfloat16; heads for values and scores stay float32.
        lora_rank: above 0, adapters are trained and the base is frozen.
        lora_vision: adapters in vision tower and projector, too.
        freeze: parts of policy and critic that are not trained.
        num_banned: ids that the policy's sampler is forbidden, 8 bytes each.
        images: whether rows have images; the loss of text alone reaches no vision parameter.
    """
    import torch

    from actors.lora import add_adapters
    from actors.modules import CriticModule, PolicyModule, RewardModule, ScoreHead
    from actors.parts import freeze as freeze_parts

    vlm: Any = meta_model(architecture)
    with torch.device("meta"):
        if bf16:
            for parameter in vlm.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        if lora_rank and role in ("policy", "critic"):
            add_adapters(vlm, rank=lora_rank, vision=lora_vision)
        freeze_parts(vlm, freeze if role in ("policy", "critic") else ())
        if role == "critic":
            module: Any = CriticModule(vlm)
        elif role == "reward":
            module = RewardModule(vlm, ScoreHead(architecture.text_hidden_size))
        else:
            module = PolicyModule(vlm, banned_ids=[0] * num_banned)
    frozen = role in ("reference", "reward")
    beyond = unreached(architecture, images=images)
    return CopyTensors(
        shapes=tuple(
            TensorShape(
                name=name,
                numel=parameter.numel(),
                trained=parameter.requires_grad and not frozen,
                bytes_per_element=parameter.element_size(),
                reached=not beyond(name.removeprefix("vlm.")),
            )
            for name, parameter in module.named_parameters()
        ),
        buffer_bytes=sum(each.numel() * each.element_size() for each in module.buffers()),
    )
