"""Every family among the presets, shrunk to a few ten thousand parameters; its modules are real."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 48,
    "max_window_layers": 3,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_heads": 2,
    "num_hidden_layers": 3,
    "depth": 4,
    "out_hidden_size": 16,
    "fullatt_block_indexes": [3],
    "deepstack_visual_indexes": [0, 1, 2],
}
TOKENS = {"image": 3, "video": 4, "vision_start": 5, "vision_end": 6, "pad": 2, "eos": 1, "bos": 1}


def shrunk(name: str) -> Any:
    """The preset's config with small sizes; what the family lacks stays lacking."""
    from cluster.planner.architectures import load_architecture

    config = copy.deepcopy(load_architecture(name).config)
    text = config.get_text_config()
    for part, sizes in ((text, TEXT), (config.vision_config, VISION)):
        for field, size in sizes.items():
            if field == "head_dim" or getattr(part, field, None) is not None:
                setattr(part, field, size)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:3]
    if "mrope_section" in (text.rope_parameters or {}):
        text.rope_parameters["mrope_section"] = [2, 1, 1]
    for part in (config, text):
        for kind, token in TOKENS.items():
            for field in (f"{kind}_token_id", f"{kind}_token_index"):
                if isinstance(getattr(part, field, None), int):
                    setattr(part, field, token)
    return config


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`family_folder("qwen3-vl-8b")`: folder with a tiny model of the preset's architecture."""

    @cache
    def make(name: str) -> str:
        import torch
        from transformers import AutoModelForImageTextToText

        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(name)
        model = AutoModelForImageTextToText.from_config(shrunk(name), dtype=torch.float32)
        model.save_pretrained(folder)
        return str(folder)

    return make
