"""Families that read a prompt in both directions, and how far the engine is from them.

    python -m tests.families.prefix_lm FAMILY FOLDER IMAGES PROMPTS RESULTS

Gemma 3 sees an image's tokens, PaliGemma the whole prompt, both ways. What an engine computes is
held against the module with its own attention, and against the same module made causal. A prompt
that the engine reads otherwise than the trainer is dropped, and its reason is the result.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from torch import Tensor

from actors.modules import PolicyModule
from tests.families.builders import SIDE
from tests.families.folders import (
    HEAD_DIM,
    HIDDEN,
    MAX_POSITIONS,
    PATCH,
    chat_template,
    save,
    sizes,
    square_tower,
    text_sizes,
    token_id,
    tokenizer,
    tower_level,
)
from tests.families.in_engine import Pair
from trainers.batch import Row, collate, encode_row
from trainers.data.model_folder import FAMILIES
from trainers.data.records import Rollout

TYPES = "token_type_ids"


def gemma3(folder: Path) -> Path:
    """Gemma 3: SigLIP pooled to a fixed number of tokens; sees an image's tokens both ways."""
    words = tokenizer(
        {
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "start": "<|im_start|>",
            # vLLM joins line ends around an image as Gemma's tokenizer does, by name.
            **{f"lines_{number}": "\n" * number for number in (1, 2, 3, 4)},
        },
        bos=True,
    )
    text = text_sizes(words, query_pre_attn_scalar=HEAD_DIM, sliding_window=MAX_POSITIONS)
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**text),
        vision_config=hf.SiglipVisionConfig(**square_tower(SIDE), vision_use_head=False),
        mm_tokens_per_image=4,
        image_token_index=token_id(words, "<image_soft_token>"),
        boi_token_index=token_id(words, "<start_of_image>"),
        eoi_token_index=token_id(words, "<end_of_image>"),
    )
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size=sizes(SIDE)),
        words,
        image_seq_length=4,
        chat_template=chat_template("<start_of_image>"),
    )
    return save(folder, config, processor, tower_level)


def paligemma(folder: Path) -> Path:
    """PaliGemma: SigLIP, Gemma; sees the whole prompt both ways."""
    marks = {"image_token": "<image>", "start": "<|im_start|>", "line": "\n"}  # vLLM looks it up
    words = tokenizer(marks, bos=True)
    images = hf.SiglipImageProcessor(size=sizes(SIDE))
    images.image_seq_length = (SIDE // PATCH) ** 2
    processor = hf.PaliGemmaProcessor(images, words, chat_template=chat_template("<image>"))
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(**text_sizes(words)),
        vision_config=hf.SiglipVisionConfig(
            **square_tower(SIDE, vision_use_head=False, projection_dim=HIDDEN)
        ),
        projection_dim=HIDDEN,
        image_token_index=token_id(words, "<image>"),
    )
    return save(folder, config, processor, tower_level)


BUILDERS: dict[str, Callable[[Path], Path]] = {make.__name__: make for make in (gemma3, paligemma)}
"""`model_type` -> builder."""


def token_types(family: str, ids_T: Tensor, image_id: int, prompt_tokens: int) -> Tensor:
    """What tells the module where attention goes both ways: Gemma 3's is 1 at an image's tokens,
    PaliGemma's 0 in the prompt. Shape (1, T).
    """
    if family == "gemma3":
        return (ids_T == image_id).long()[None]
    return (torch.arange(len(ids_T)) >= prompt_tokens).long()[None]


def gap(pair: Pair, rollouts: Sequence[Rollout], *, causal: bool) -> float:
    """Largest |engine logprob - module logprob| of any token."""
    family = pair.vlm.config.model_type
    by_id = {sample.id: sample for sample in pair.samples}
    module = PolicyModule(pair.vlm, banned_ids=pair.processing.banned_ids()).train()
    largest = 0.0
    for rollout in rollouts:
        row = Row.of_response(by_id[rollout.sample_id], rollout.token_ids, rollout.id)
        batch = collate([row], [encode_row(row, pair.processing)], pair.processing)
        batch.token_inputs.pop(TYPES, None)
        if not causal:
            batch.token_inputs[TYPES] = token_types(
                family,
                batch.input_ids_BT[0],
                pair.processing.image_token_id,
                rollout.prompt_tokens,
            )
        with torch.no_grad():
            values = module(batch).logprobs_BR[0, : len(rollout.token_ids)].numpy()
        largest = max(largest, float(np.abs(np.array(rollout.logprobs) - values).max()))
    return largest


def main(family: str, folder: str, image_root: str, prompts: str, results: str) -> None:
    """Measure; nothing is asserted here."""
    FAMILIES[family] = family  # in this process only: elsewhere such a folder is refused
    samples = pickle.loads(Path(prompts).read_bytes())
    pair = Pair(str(BUILDERS[family](Path(folder))), image_root, samples)
    rollouts, dropped = pair.engine.generate(
        samples, num_rollouts_per_prompt=2, temperature=1.0, max_tokens=12, seed=0
    )
    measured: dict[str, float | str] = {}
    if dropped:
        measured["dropped"] = dropped[0].reason
    else:
        measured["own"] = gap(pair, rollouts, causal=False)
        measured["causal"] = gap(pair, rollouts, causal=True)
    Path(results).write_text(json.dumps(measured))


if __name__ == "__main__":
    main(*sys.argv[1:])
