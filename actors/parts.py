"""The parts of a vision-language model that can be frozen: tower, projector, language model.

What is the language model's is asked of the model; what is the projector's is told by its name, of
which the families have a handful. The rest is the tower's.
"""

from __future__ import annotations

from typing import Any

from torch import nn

PROJECTORS = ("multi_modal_projector", "connector", "merger", "image_newline")
"""What leads from the tower's features to the language model's width: LLaVA, InternVL and Gemma;
Idefics3 and SmolVLM; Qwen-VL; LLaVA-NeXT's row end."""


def parameters_by_part(vlm: Any) -> dict[str, list[nn.Parameter]]:
    """Every parameter of `vlm` once, under `vision`, `projector` or `language` (embeddings and head
    are the language model's).
    """
    modules = (vlm.get_decoder(), vlm.get_input_embeddings(), vlm.get_output_embeddings())
    language = {id(each) for module in modules if module for each in module.parameters()}
    parts: dict[str, list[nn.Parameter]] = {"vision": [], "projector": [], "language": []}
    for name, parameter in vlm.named_parameters():
        if id(parameter) in language:
            parts["language"].append(parameter)
        else:
            projects = any(part in name for part in PROJECTORS)
            parts["projector" if projects else "vision"].append(parameter)
    return parts


def freeze(vlm: Any, frozen: tuple[str, ...]) -> None:
    """No gradient for these parts.

    Raises:
        ValueError: there is no such part, or the model has nothing in it.
    """
    parts = parameters_by_part(vlm)
    for part in frozen:
        if not parts.get(part):
            names = ", ".join(name for name, held in parts.items() if held)
            raise ValueError(f"no part of the model is called {part!r}; there is {names}")
        for parameter in parts[part]:
            parameter.requires_grad_(False)
