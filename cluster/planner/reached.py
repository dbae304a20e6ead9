"""Which parameters a loss never depends on, though they are trained: they cost gradients of zeros.

LLaVA reads the vision tower's states behind one of its layers (`vision_feature_layer`, the last but
one in LLaVA-1.5) and never its last norm, so whatever comes after is not reached. Of the other
families every parameter is (`tests/cluster/planner/test_reached.py` runs the real models).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from cluster.planner.architectures import Architecture

_LAYER = re.compile(r"vision_tower\..*\blayers\.(\d+)\.")
_LLAVA = ("llava", "llava_onevision")


def unreached(architecture: Architecture, *, images: bool = True) -> Callable[[str], bool]:
    """A test of a parameter's name, as in the vision-language model's `named_parameters()`; an
    adapter's name goes by the layer that it is on.

    Without `images` (rows of text alone) it is true of all vision parameters.
    """
    if not images:
        prefixes = _vision_modules(architecture)
        return lambda name: f"{name}.".startswith(prefixes)
    if architecture.family not in _LLAVA:
        return lambda _: False
    config = architecture.config
    chosen = config.vision_feature_layer
    depth = int(config.vision_config.num_hidden_layers)
    # Of depth + 1 states the first is the embeddings', the last the last layer's.
    read = max(
        index if index >= 0 else depth + 1 + index
        for index in (chosen if isinstance(chosen, list | tuple) else [chosen])
    )

    def test(name: str) -> bool:
        layer = _LAYER.search(name)
        return int(layer[1]) >= read if layer else "post_layernorm" in name

    return test


def _vision_modules(architecture: Architecture) -> tuple[str, ...]:
    """Prefixes such as `model.vision_tower.`: modules below the root without a language tensor."""
    prefixes: dict[str, bool] = {}
    for parameter in architecture.parameters:
        prefix = ".".join(parameter.name.split(".")[:2]) + "."
        prefixes[prefix] = prefixes.get(prefix, True) and parameter.part == "vision"
    return tuple(prefix for prefix, vision in prefixes.items() if vision)
