"""Low-rank adapters (LoRA, arXiv 2106.09685): W x + (alpha / rank) * B (A x), with W frozen.

A starts random and B at zero, so that a model with new adapters computes exactly what it computed
without. There is no dropout: with it the first PPO ratio would not be 1. Nothing is ever merged
into the live weights, since adding and subtracting in floating point drifts; whoever needs plain
weights gets them from `split_adapters`, one tensor at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class LoraLinear(nn.Module):
    """A linear layer and its adapter, in the layer's dtype. Names of the parts are peft's."""

    def __init__(self, base: nn.Linear, rank: int, scaling: float):
        super().__init__()
        self.base_layer = base
        kind = {"dtype": base.weight.dtype, "device": base.weight.device}
        # nn.Linear's own start is the kaiming-uniform one with a = sqrt(5) that peft has for A.
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, **kind)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, **kind)
        nn.init.zeros_(self.lora_B.weight)
        self.scaling = scaling
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, with the adapter's part while it is enabled."""
        output: Tensor = self.base_layer(x)
        if self.enabled:
            output = output + self.scaling * self.lora_B(self.lora_A(x))
        return output


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to a weight: scaling * B A."""

    a: Tensor
    b: Tensor
    scaling: float

    def added_to(self, weight: Tensor) -> Tensor:
        """A new tensor, `weight` + scaling * B A: summed in float32, rounded once to its dtype."""
        return (weight.float() + self.scaling * (self.b.float() @ self.a.float())).to(weight.dtype)


def add_adapters(
    vlm: Any, *, rank: int, alpha: float | None = None, vision: bool = False, seed: int = 0
) -> None:
    """Freeze `vlm` and put an adapter on every linear layer of its language model, in place.

    `alpha` is twice the rank by default (scaling 2). The language head and the embeddings are left
    alone. With `vision` the vision tower and the projector get adapters, too. The start is a
    function of `seed`, so that all ranks have the same.

    Raises:
        ValueError: there is no linear layer to adapt, or `vlm` has adapters already.
    """
    if adapters(vlm):
        raise ValueError("the model has adapters already")
    root = vlm.model if vision else vlm.get_decoder()
    layers = linear_layers(root)
    if not layers:
        raise ValueError(f"{type(root).__name__} has no linear layer to adapt")
    scaling = (2.0 * rank if alpha is None else alpha) / rank
    vlm.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in layers:
            root.set_submodule(name, LoraLinear(root.get_submodule(name), rank, scaling))


def linear_layers(root: nn.Module) -> list[str]:
    """Names of the layers below `root` that adapters are put on."""
    return [name for name, module in root.named_modules() if isinstance(module, nn.Linear)]


def twin(vlm: Any) -> Any:
    """A second model on the same weights, without `vlm`'s adapters.

    Its modules are its own, so that it can have other adapters and another head; its parameters and
    buffers are `vlm`'s tensors themselves, so that it costs no memory.
    """
    shared = {id(tensor): tensor for tensor in (*vlm.parameters(), *vlm.buffers())}
    other = copy.deepcopy(vlm, shared)
    for name, layer in adapters(other).items():
        other.set_submodule(name, layer.base_layer)
    return other


def adapters(vlm: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by name; none for a model without adapters."""
    return {name: part for name, part in vlm.named_modules() if isinstance(part, LoraLinear)}


@contextmanager
def adapters_off(vlm: nn.Module) -> Iterator[None]:
    """Inside, `vlm` computes exactly what its frozen base computes."""
    layers = adapters(vlm).values()
    # Without adapters the policy would be its own reference, and the KL 0 for ever.
    assert layers, "there are no adapters to turn off"
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


def split_adapters(
    vlm: nn.Module, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, LowRank]]:
    """`vlm`'s state dict under a plain model's names, and what the adapters add, by those names."""
    plain, changes = dict(state), {}
    for name, layer in adapters(vlm).items():
        a, b = (plain.pop(f"{name}.{part}.weight") for part in ("lora_A", "lora_B"))
        for kind, _ in layer.base_layer.named_parameters():
            plain[f"{name}.{kind}"] = plain.pop(f"{name}.base_layer.{kind}")
        changes[f"{name}.weight"] = LowRank(a, b, layer.scaling)
    return plain, changes
