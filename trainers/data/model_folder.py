"""What a model's folder must hold, and what its configuration says, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainers.data.errors import UserError

FAMILIES = {
    "llava": "LLaVA-1.5",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "internvl": "InternVL",
}
"""`model_type` of the families that are tested (`docs/models.md`), and what they are called."""


def families_that_work() -> str:
    """The end of a message that refuses a folder."""
    return f"families that work: {', '.join(FAMILIES)}"


def check_model_folder(model_dir: str | Path, *, weights: bool = True) -> dict[str, Any]:
    """The folder's config, after checking that it is a VLM of a family that works, with its
    processor and, unless told otherwise, its weights.

    Raises:
        UserError: what is missing and what would work.
    """
    folder = Path(model_dir)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(f"{folder}: no config.json; give a Hugging Face model folder")
    try:
        config: dict[str, Any] = json.loads(config_file.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{config_file}: not JSON ({error}); download the model again") from None
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise UserError(
            f"{folder}: model_type {model_type!r} is not supported; {families_that_work()}"
        )
    needed = {
        "image processor": ("preprocessor_config.json", "processor_config.json"),
        "tokenizer": ("tokenizer.json", "tokenizer.model"),
        "weights": (
            "model.safetensors",
            "model.safetensors.index.json",
        ),
    }
    if not weights:
        del needed["weights"]
    for name, files in needed.items():
        if not any((folder / file).is_file() for file in files):
            raise UserError(f"{folder}: no {name} ({' or '.join(files)}); copy it into the folder")
    return config


def longest_context(config: dict[str, Any]) -> int | None:
    """Tokens that a folder's model takes, as its config says; None if it does not.

    Qwen2-VL's and Qwen2.5-VL's released configs have the language model's fields at top level.
    """
    text = config.get("text_config") or config
    longest = text.get("max_position_embeddings", config.get("max_position_embeddings"))
    return None if longest is None else int(longest)
