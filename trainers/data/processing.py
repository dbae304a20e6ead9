"""From turns and images to token ids and pixel tensors, by the model's own processor.

One wrapper for every process that holds a model, so that the rollout engine, the trainer and the
judge see the same tokens. Sampled responses are never re-tokenised; prompts are never truncated.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.records import Turn

SUPPORTED_MODEL_TYPES = ("llava",)
"""`model_type` of the families that are tested; others follow."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one row (image placeholders expanded) and which of them are targets."""

    input_ids: np.ndarray
    """int64, shape (T,)."""
    target_mask: np.ndarray
    """bool, shape (T,)."""
    model_inputs: dict[str, Tensor]


class Processing:
    """The processor of one model folder, with an image store to resolve references.

    Args:
        model_dir: a Hugging Face VLM folder with processor and chat template.
        store: where the images of the rows are.
        cache_bytes: budget of the cache of preprocessed images.
    """

    def __init__(self, model_dir: str | Path, store: ImageStore, *, cache_bytes: int = 2**28):
        from transformers import AutoProcessor

        self.config = check_model_folder(model_dir)
        self.processor: Any = AutoProcessor.from_pretrained(model_dir)
        self.tokenizer: Any = self.processor.tokenizer
        if not getattr(self.processor, "chat_template", None):
            raise UserError(
                f"{model_dir}: the processor has no chat template; add chat_template.jinja to it"
            )
        self.store = store
        self.eos_id = int(self.tokenizer.eos_token_id)
        pad_id = self.tokenizer.pad_token_id
        self.pad_id = self.eos_id if pad_id is None else int(pad_id)
        self.image_token_id = int(self.config["image_token_index"])
        self._cache: OrderedDict[tuple[str, ...], dict[str, Tensor]] = OrderedDict()
        self._cached_bytes = 0
        self._cache_bytes = cache_bytes

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding and head (may exceed the tokenizer's length)."""
        return int(self.config["text_config"]["vocab_size"])

    def banned_ids(self) -> list[int]:
        """Token ids that no rollout may contain: every special token but EOS, and rows of the
        embedding that stand for no token. A sampled image placeholder would make the trainer's
        token and feature counts differ.
        """
        special = set(self.tokenizer.all_special_ids) | {self.image_token_id, self.pad_id}
        unused = set(range(len(self.tokenizer), self.vocab_size))
        return sorted((special | unused) - {self.eos_id})

    def chat_text(self, turns: Sequence[Turn], *, add_generation_prompt: bool = False) -> str:
        """The chat template's text, one placeholder per image, before expansion."""
        messages = [
            {
                "role": turn.role,
                "content": [{"type": "image"}] * turn.num_images
                + [{"type": "text", "text": turn.text}],
            }
            for turn in turns
        ]
        text = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return str(text)

    def images(self, references: Sequence[str]) -> list[Image.Image]:
        return [self.store.get(reference) for reference in references]

    def encode(
        self,
        id: str,
        prompt: Sequence[Turn],
        images: Sequence[str],
        *,
        response_ids: Sequence[int] | None = None,
        turns: Sequence[Turn] = (),
        image_inputs: dict[str, Tensor] | None = None,
    ) -> Encoded:
        """Encode a prompt followed by sampled tokens or by further turns.

        With `response_ids` every one of them is a target. With `turns` the targets are each
        assistant turn's tokens up to and including EOS; assistant turns of the prompt are context.
        `image_inputs` are already processed
        images, for callers that draw them; `images` is then not looked up.

        Raises:
            ValueError: tokens and images do not match; names the row.
        """
        if response_ids is not None:
            head = self.chat_text(prompt, add_generation_prompt=True)
            segments = [(head, False)]
        else:
            segments = self._segments(id, [*prompt, *turns], context=len(prompt))
        first_ids, model_inputs = self._encode_first(id, segments[0][0], images, image_inputs)
        pieces, masks = [first_ids], [np.zeros(len(first_ids), dtype=bool)]
        if response_ids is not None:
            pieces.append(np.asarray(response_ids, dtype=np.int64))
            masks.append(np.ones(len(response_ids), dtype=bool))
        for text, is_target in segments[1:]:
            ids = np.asarray(self.tokenizer(text, add_special_tokens=False).input_ids, np.int64)
            mask = np.zeros(len(ids), dtype=bool)
            if is_target:
                ends = np.flatnonzero(ids == self.eos_id)
                mask[: ends[0] + 1 if len(ends) else len(ids)] = True
            pieces.append(ids)
            masks.append(mask)
        input_ids, target_mask = np.concatenate(pieces), np.concatenate(masks)
        if (input_ids[target_mask] == self.image_token_id).any():
            raise ValueError(f"row {id}: an image placeholder token is among the target tokens")
        return Encoded(input_ids, target_mask, model_inputs)

    def _segments(
        self, id: str, turns: Sequence[Turn], *, context: int
    ) -> list[tuple[str, bool]]:
        """Split the template's text into context and target parts, in order.

        The first `context` turns hold no target.
        """
        segments: list[tuple[str, bool]] = []
        done = ""
        for index, turn in enumerate(turns):
            if index < context or turn.role != "assistant":
                continue
            before = self.chat_text(turns[:index], add_generation_prompt=True)
            after = self.chat_text(turns[: index + 1])
            if not before.startswith(done) or not after.startswith(before):
                raise ValueError(
                    f"row {id}: the chat template rewrites earlier turns, so the target tokens "
                    "cannot be located"
                )
            segments += [(before[len(done) :], False), (after[len(before) :], True)]
            done = after
        if not segments:
            raise ValueError(f"row {id}: no assistant turn to learn from")
        return segments

    def _encode_first(
        self,
        id: str,
        text: str,
        images: Sequence[str],
        inputs: dict[str, Tensor] | None,
    ) -> tuple[np.ndarray, dict[str, Tensor]]:
        placeholders = text.count(self.processor.image_token)
        number = len(images) if inputs is None else len(inputs["pixel_values"])
        if placeholders != number:
            raise ValueError(f"row {id}: {placeholders} image placeholders, {number} images")
        if not placeholders:
            return self._tokenize_first(text), {}
        if inputs is None:
            inputs = self._image_inputs(tuple(images))
        parts = text.split(self.processor.image_token)
        expanded = parts[0] + "".join(
            self.processor.replace_image_token(inputs, index) + part
            for index, part in enumerate(parts[1:])
        )
        return self._tokenize_first(expanded), inputs

    def _tokenize_first(self, text: str) -> np.ndarray:
        """Tokenise the start of a sequence as the engine does: BOS unless the template wrote it."""
        has_bos = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        ids = self.tokenizer(text, add_special_tokens=not has_bos).input_ids
        return np.asarray(ids, dtype=np.int64)

    def _image_inputs(self, images: tuple[str, ...]) -> dict[str, Tensor]:
        if (hit := self._cache.get(images)) is not None:
            self._cache.move_to_end(images)
            return hit
        inputs = dict(
            self.processor.image_processor(self.images(images), return_tensors="pt").data
        )
        self._cache[images] = inputs
        self._cached_bytes += sum(t.nbytes for t in inputs.values())
        while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._cached_bytes -= sum(t.nbytes for t in old.values())
        return inputs

    def merge(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Concatenate the image tensors of several rows along their first axis."""
        names = sorted({name for item in inputs for name in item})
        return {
            name: torch.cat([item[name] for item in inputs if name in item]) for name in names
        }


def check_model_folder(model_dir: str | Path) -> dict[str, Any]:
    """The folder's config, after checking that it is a VLM of a supported family.

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
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise UserError(
            f"{folder}: model_type {model_type!r} is not supported; "
            f"families that work: {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    for name, files in {
        "image processor": ("preprocessor_config.json", "processor_config.json"),
        "tokenizer": ("tokenizer.json", "tokenizer.model"),
        "weights": (
            "model.safetensors",
            "model.safetensors.index.json",
        ),
    }.items():
        if not any((folder / file).is_file() for file in files):
            raise UserError(f"{folder}: no {name} ({' or '.join(files)}); copy it into the folder")
    return config
