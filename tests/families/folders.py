"""A tiny folder of every family: random weights, byte-level tokenizer, processor, chat template.

Nothing is read from the network. The modules and processors are the families' own; sizes are the
smallest that vLLM computes on a CPU (attention heads of 32).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

HIDDEN, INNER, LAYERS, HEADS, HEAD_DIM = 64, 96, 2, 2, 32
VISION_HIDDEN, VISION_INNER, PATCH = 32, 48, 16
MAX_POSITIONS = 2048
INITIALIZER_RANGE = 0.1
"""So that logits differ: at 0.02 a model of this width answers almost uniformly."""
PAD, EOS, BOS = "<pad>", "<|im_end|>", "<s>"
CORPUS = [
    "Describe the image. What do you see? Is there a red circle? Yes, there is. No.\n",
    "user assistant system\n\n a blue square and a green triangle on the left of it\n",
] * 4


def tokenizer(marks: dict[str, str], *, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Qwen's and Llama 3's, with the family's `marks` as special tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=[PAD, EOS, BOS, *dict.fromkeys(marks.values())],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    extra = {name: mark for name, mark in marks.items() if name.endswith("_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS if bos else None,
        extra_special_tokens=extra,
        additional_special_tokens=list(dict.fromkeys(marks.values())),
        padding_side="right",
        model_max_length=MAX_POSITIONS,
    )


def chat_template(image: str, *, lead: str = "") -> str:
    """ChatML, as Qwen's; an image part becomes `image`."""
    return (
        f"{lead}"
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{{{{ '{image}' }}}}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        "{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


def text_sizes(words: PreTrainedTokenizerFast, **options: Any) -> dict[str, Any]:
    """The language model's part of a config."""
    return {
        "vocab_size": len(words) + 5,  # released embeddings have rows that stand for no token
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": INITIALIZER_RANGE,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        **options,
    }


def square_tower(side: int, **options: Any) -> dict[str, Any]:
    """A CLIP or SigLIP tower's part of a config."""
    return {
        "hidden_size": VISION_HIDDEN,
        "intermediate_size": VISION_INNER,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": PATCH,
        "initializer_range": INITIALIZER_RANGE,
        **options,
    }


def token_id(words: PreTrainedTokenizerFast, mark: str) -> int:
    """The id of a token that exists."""
    index = words.convert_tokens_to_ids(mark)
    assert isinstance(index, int) and words.convert_ids_to_tokens(index) == mark
    return index


def save(
    folder: Path, config: Any, processor: Any, rename: Callable[[str], str] | None = None
) -> Path:
    """Random weights of `config` (seed 0) and its processor, as a released folder has them.

    `rename` turns the names that transformers saves into those of released checkpoints.
    """
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    _spread(config)
    model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            # Zero biases and unit norms hide a weight that was not loaded.
            parameter += 0.02 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if rename is not None:
        weights = folder / "model.safetensors"
        renamed = {rename(name): tensor for name, tensor in load_file(weights).items()}
        save_file(renamed, weights, metadata={"format": "pt"})
    return folder


def _spread(config: Any) -> None:
    config.initializer_range = INITIALIZER_RANGE
    for part in (config.get_text_config(), config.vision_config):
        part.initializer_range = INITIALIZER_RANGE


def tower_level(name: str) -> str:
    """Puts back the level `vision_model.` that released CLIP and SigLIP checkpoints have."""
    if "vision_tower." in name and "vision_model." not in name:
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name


def sizes(side: int) -> dict[str, int]:
    """An image processor's square size."""
    return {"height": side, "width": side}


def grid(side: int, *shapes: Sequence[int]) -> list[list[int]]:
    """Tile arrangements (rows, columns) as resolutions, for LLaVA-NeXT's `image_grid_pinpoints`."""
    return [[rows * side, columns * side] for rows, columns in shapes]
