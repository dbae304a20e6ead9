"""A model as a plain Hugging Face folder, with its processor, that vLLM can load."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trainers.data.processing import Processing

WEIGHTS = "model.safetensors"


def save_model_folder(
    vlm: Any, state: Mapping[str, Tensor], processing: Processing, folder: Path
) -> None:
    """Write `vlm`'s configuration and processor, and `state`, its weights by checkpoint names."""
    folder.mkdir(parents=True, exist_ok=True)
    vlm.config.save_pretrained(folder)
    vlm.generation_config.save_pretrained(folder)
    processing.processor.save_pretrained(folder)
    write_tensors({n: t.contiguous().clone() for n, t in state.items()}, folder / WEIGHTS)


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the disk would not take it, which safetensors says in an error of its own.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        full = "No space left" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, f"{path.name}: {error}") from None
