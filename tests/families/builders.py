"""One builder per family: what its released folders look like, in miniature."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import transformers as hf

from tests.families.folders import (
    HIDDEN,
    PATCH,
    VISION_HIDDEN,
    VISION_INNER,
    chat_template,
    grid,
    save,
    sizes,
    square_tower,
    text_sizes,
    token_id,
    tokenizer,
    tower_level,
)

SIDE = 64
"""Of a tile, or of the whole image where a family knows no tiles."""
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4]}


def llava(folder: Path) -> Path:
    """LLaVA-1.5: CLIP tower read one layer before its last, Llama; every image one square."""
    words = tokenizer({"image_token": "<image>", "start": "<|im_start|>"}, bos=True)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**square_tower(SIDE)),
        text_config=hf.LlamaConfig(**text_sizes(words)),
        image_token_index=token_id(words, "<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=sizes(SIDE)),
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>\\n"),
    )
    return save(folder, config, processor, tower_level)


def llava_next(folder: Path) -> Path:
    """LLaVA-NeXT (1.6): the same tower on an overview and on tiles, rows ended by a newline."""
    words = tokenizer({"image_token": "<image>", "start": "<|im_start|>"}, bos=True)
    pinpoints = grid(SIDE, (1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**square_tower(SIDE)),
        text_config=hf.LlamaConfig(**text_sizes(words)),
        image_token_index=token_id(words, "<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=pinpoints,
    )
    processor = hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessor(
            size={"shortest_edge": SIDE}, crop_size=sizes(SIDE), image_grid_pinpoints=pinpoints
        ),
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>\\n"),
    )
    return save(folder, config, processor, tower_level)


def llava_onevision(folder: Path) -> Path:
    """LLaVA-OneVision: SigLIP, Qwen2; tiles pooled where they are many."""
    words = tokenizer({"image_token": "<image>", "video_token": "<video>", "start": "<|im_start|>"})
    pinpoints = grid(SIDE, *((rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3)))
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**square_tower(SIDE), vision_use_head=False),
        text_config=hf.Qwen2Config(**text_sizes(words)),
        image_token_index=token_id(words, "<image>"),
        video_token_index=token_id(words, "<video>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_9",
    )
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=sizes(SIDE), image_grid_pinpoints=pinpoints),
        words,
        hf.LlavaOnevisionVideoProcessor(size=sizes(SIDE)),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=chat_template("<image>\\n"),
    )
    return save(folder, config, processor, tower_level)


QWEN_MARKS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "start": "<|im_start|>",
}
QWEN_TEMPLATE = chat_template("<|vision_start|><|image_pad|><|vision_end|>")


def _qwen_ids(words: hf.PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        name.replace("_token", "_token_id"): token_id(words, mark)
        for name, mark in QWEN_MARKS.items()
        if name.endswith("_token")
    }


def qwen2_vl(folder: Path) -> Path:
    """Qwen2-VL: native resolution, M-RoPE."""
    words = tokenizer(QWEN_MARKS)
    config = hf.Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": VISION_HIDDEN,
            "hidden_size": HIDDEN,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": PATCH,
        },
        text_config=text_sizes(words, rope_parameters=dict(MROPE)),
        **_qwen_ids(words),
    )
    return save(folder, config, _qwen_processor(hf.Qwen2VLProcessor, words))


def qwen2_5_vl(folder: Path) -> Path:
    """Qwen2.5-VL: attention in windows but in some layers; M-RoPE."""
    words = tokenizer(QWEN_MARKS)
    config = hf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": VISION_INNER,
            "out_hidden_size": HIDDEN,
            "num_heads": 2,
            "patch_size": PATCH,
            "window_size": 4 * PATCH,
            "fullatt_block_indexes": [1],
        },
        text_config=text_sizes(words, rope_parameters=dict(MROPE)),
        **_qwen_ids(words),
    )
    return save(folder, config, _qwen_processor(hf.Qwen2_5_VLProcessor, words))


def _qwen_processor(
    kind: type, words: hf.PreTrainedTokenizerFast, videos: object | None = None
) -> object:
    edges = {"shortest_edge": (2 * PATCH) ** 2, "longest_edge": (8 * PATCH) ** 2}
    return kind(
        hf.Qwen2VLImageProcessor(patch_size=PATCH, size=edges),
        words,
        videos or hf.Qwen2VLVideoProcessor(patch_size=PATCH, size=edges),
        chat_template=QWEN_TEMPLATE,
    )


def qwen3_vl(folder: Path) -> Path:
    """Qwen3-VL: interleaved M-RoPE; features of several tower layers enter several text layers."""
    words = tokenizer(QWEN_MARKS)
    config = hf.Qwen3VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": VISION_INNER,
            "out_hidden_size": HIDDEN,
            "num_heads": 2,
            "patch_size": PATCH,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        # A layer above those that tower features enter: behind the last one nothing reads them.
        text_config=text_sizes(
            words, num_hidden_layers=3, rope_parameters=MROPE | {"mrope_interleaved": True}
        ),
        **_qwen_ids(words),
    )
    videos = hf.Qwen3VLVideoProcessor(patch_size=PATCH)
    return save(folder, config, _qwen_processor(hf.Qwen3VLProcessor, words, videos))


TILE_MARKS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    "video_token": "<video>",
    "start": "<|im_start|>",
} | {f"{row}_{column}": f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)}


def idefics3(folder: Path) -> Path:
    """Idefics3: SigLIP on an overview and on tiles, pixels shuffled into fewer tokens."""
    return _shuffled(folder, hf.Idefics3Config, hf.Idefics3Processor, hf.Idefics3ImageProcessor)


def smolvlm(folder: Path) -> Path:
    """SmolVLM: Idefics3's layout on a smaller language model; its processor takes videos, too."""
    parts = (hf.SmolVLMImageProcessor, hf.SmolVLMVideoProcessor)
    return _shuffled(folder, hf.SmolVLMConfig, hf.SmolVLMProcessor, *parts)


def _shuffled(folder: Path, config_kind: type, processor_kind: type, *parts: type) -> Path:
    words = tokenizer(TILE_MARKS)
    config = config_kind(
        vision_config=square_tower(SIDE),
        text_config=hf.LlamaConfig(**text_sizes(words)),
        image_token_id=token_id(words, "<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
    )
    edges = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    images, *videos = (part(**edges) for part in parts)
    processor = processor_kind(
        images,
        words,
        *videos,
        image_seq_len=(SIDE // PATCH) ** 2 // 4,
        chat_template=chat_template("<image>"),
    )
    return save(folder, config, processor)


def internvl(folder: Path) -> Path:
    """InternVL (3 and later, the folders in transformers' own format): InternViT, Qwen2, tiles."""
    words = tokenizer(
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
            "start": "<|im_start|>",
        }
    )
    config = hf.InternVLConfig(
        vision_config=square_tower(SIDE, image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH]),
        text_config=hf.Qwen2Config(**text_sizes(words)),
        image_token_id=token_id(words, "<IMG_CONTEXT>"),
        image_seq_length=(SIDE // PATCH) ** 2 // 4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=sizes(SIDE), crop_to_patches=True, max_patches=4),
        words,
        hf.InternVLVideoProcessor(size=sizes(SIDE)),
        image_seq_length=(SIDE // PATCH) ** 2 // 4,
        chat_template=chat_template("<IMG_CONTEXT>\\n"),
    )
    return save(folder, config, processor)


BUILDERS: dict[str, Callable[[Path], Path]] = {
    make.__name__: make
    for make in (
        llava,
        llava_next,
        llava_onevision,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        idefics3,
        smolvlm,
        internvl,
    )
}
"""`model_type` -> builder."""
