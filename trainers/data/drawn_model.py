"""The small LLaVA that describes the drawn world: tokenizer, processor, model, folder on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from trainers.data.scenes import COLORS, IMAGE_SIZE, NUMBERS, POSITIONS, SHAPES, plural

PATCH_SIZE = 16
HIDDEN_SIZE = 128
VISION_LAYERS, TEXT_LAYERS = 3, 3
INITIALIZER_RANGE = 0.1
POSITION_SCALE = 20.0
"""Of the tower's initial position embeddings: at the initialiser's own scale they are a few percent
of the patch embeddings, and what is where stays unreadable."""
MAX_POSITIONS = 512
PIXEL_MEAN = PIXEL_STD = 0.3

SPECIAL_TOKENS = ("<pad>", "</s>", "<s>", "<unk>", "<image>")
WORDS: tuple[str, ...] = (
    "user", "assistant", "system", ":", ".", "?", "a", "the", "is", "are", "there", "at", "in",
    "what", "where", "how", "many", "color", "describe", "list", "image", "objects", "do", "you",
    "see", "yes", "no", "critique", "answer", "ok", "bad", "missing", "nothing", "again",
    "nowhere",
    *COLORS, *SHAPES, *(plural(s) for s in SHAPES), *POSITIONS, *NUMBERS,
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] + ' : ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image> ' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ ' </s>' }}{% endif %}"
    "{% if not loop.last %}{{ ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' assistant :' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer: text is split at spaces, every word of the world is one token."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *WORDS))}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="right",
        model_max_length=MAX_POSITIONS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_processor() -> LlavaProcessor:
    """Tokenizer and CLIP image processor; an image must already be IMAGE_SIZE squared."""
    image_processor = CLIPImageProcessor(
        do_resize=True,
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        resample=2,
        do_center_crop=False,
        do_convert_rgb=False,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """A LLaVA of about one million parameters with random weights, in float32.

    The initialiser is near 1/sqrt(HIDDEN_SIZE): with the libraries' default of 0.02 the model needs
    several times as many steps to learn.
    """
    tokenizer = build_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        initializer_range=INITIALIZER_RANGE,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=INITIALIZER_RANGE,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    config.initializer_range = INITIALIZER_RANGE
    config.pad_token_id = tokenizer.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).float()
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embedding.weight.mul_(POSITION_SCALE)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def save_pretrained_folder(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path
) -> None:
    """Write a folder that transformers and vLLM both load.

    A LLaVA built from a config is saved without the `vision_model.` level that vLLM expects under
    `vision_tower.`; it is put back here, and kept by every later load and save.
    """
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    weights = folder / "model.safetensors"
    save_file(
        {_checkpoint_name(name): tensor for name, tensor in load_file(weights).items()},
        weights,
        metadata={"format": "pt"},
    )


def _checkpoint_name(name: str) -> str:
    if ".vision_tower." not in f".{name}" or ".vision_model." in name:
        return name
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def encode_images(images: Sequence[Image.Image]) -> torch.Tensor:
    """Pixel values [B, 3, IMAGE_SIZE, IMAGE_SIZE] of images that already have the right size.

    Equal to the image processor's output and about ten times cheaper per image.
    """
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return (pixels.permute(0, 3, 1, 2).float() / 255.0 - PIXEL_MEAN) / PIXEL_STD
