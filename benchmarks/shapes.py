"""The models of `benchmarks.gpu`: shapes of released architectures, and the same in miniature."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from cluster.planner.architectures import PRESETS

REAL = ("smolvlm2-500m", "qwen2.5-vl-3b", "llava-1.5-7b")
"""Three families, as they were released."""
TINY_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 160,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
}
"""At a range of 0.02 a model of this width answers almost uniformly, and every gap would be small."""
TINY: dict[str, dict[str, Any]] = {
    "smolvlm2-500m": {
        "image_token_id": 150,
        "scale_factor": 2,
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "initializer_range": 0.1,
        },
        "text_config": TINY_TEXT,
    },
    "qwen2.5-vl-3b": {
        "image_token_id": 150,
        "video_token_id": 151,
        "vision_start_token_id": 152,
        "vision_end_token_id": 153,
        "vision_config": {
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.1,
        },
        "text_config": TINY_TEXT
        | {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            }
        },
    },
    "llava-1.5-7b": {
        "image_token_index": 150,
        "image_seq_length": 16,
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 56,
            "initializer_range": 0.1,
        },
        "text_config": TINY_TEXT,
    },
}


WIDE_HEAD: dict[str, Any] = {
    **TINY["llava-1.5-7b"],
    "image_token_index": 32000,
    "text_config": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 1024,
    },
}
"""LLaVA-1.5's vocabulary of 32,064 on a small model, so that logits weigh what they do in a real
one; the drawn world's has some forty words."""


def miniature(preset: str, changes: dict[str, Any], folder: Path) -> Path:
    """A folder with the preset's config, changed: the family's modules, few and small."""
    config = json.loads((PRESETS / f"{preset}.json").read_text(encoding="utf-8"))
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    path = folder / f"tiny-{preset}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def image_tokens(folder: str | Path) -> int:
    """Tokens that the folder's own processor makes of one of the benchmark's images."""
    return prompt_tokens(folder)[1]


def prompt_tokens(folder: str | Path) -> tuple[int, int]:
    """Tokens of text and of the image in one of the benchmark's prompts, by the folder's own
    processor.
    """
    from trainers.batch import Row, encode_row
    from trainers.data.images import ImageStore
    from trainers.data.processing import Processing
    from trainers.data.scenes import scene_samples

    with tempfile.TemporaryDirectory() as temporary:
        store = ImageStore(temporary)
        processing = Processing(folder, store)
        (sample,) = scene_samples(0, 1, store.put_image)
        row = Row.of_response(sample, (processing.eos_id,), sample.id)
        ids = encode_row(row, processing).input_ids
    of_image = int((ids == processing.image_token_id).sum())
    return len(ids) - 1 - of_image, of_image
