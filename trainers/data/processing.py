"""From turns and images to token ids and pixel tensors, by the model's own processor.

One wrapper for every process that holds a model, so that the rollout engine, the trainer and the
judge see the same tokens. Sampled responses are never re-tokenised; prompts are never truncated.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.noise import ImageNoise, add_noise
from trainers.data.records import Turn

SUPPORTED_MODEL_TYPES = ("llava",)
"""`model_type` of the families that are tested; others follow."""
ENCODED_MODEL_TYPES = (*SUPPORTED_MODEL_TYPES, "smolvlm")
"""`model_type` of the families whose rows are encoded; the rest of a run need not know them."""


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

        # A tokenizer needs no weights: what fits can be asked before there are any.
        self.config = check_model_folder(model_dir, families=ENCODED_MODEL_TYPES, weights=False)
        try:
            self.processor: Any = AutoProcessor.from_pretrained(model_dir)
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{model_dir}: its processor cannot be loaded: {reason}") from None
        self.tokenizer: Any = self.processor.tokenizer
        if not getattr(self.processor, "chat_template", None):
            raise UserError(
                f"{model_dir}: the processor has no chat template; add chat_template.jinja to it"
            )
        self.store = store
        self.eos_id = int(self.tokenizer.eos_token_id)
        pad_id = self.tokenizer.pad_token_id
        self.pad_id = self.eos_id if pad_id is None else int(pad_id)
        image_token: Any = self.config.get("image_token_index", self.config.get("image_token_id"))
        self.image_token_id = int(image_token)
        # What the family's processor asks of its image part, as the grid of an image's tiles.
        defaults = getattr(type(self.processor).valid_processor_kwargs, "_defaults", {})
        self._image_settings: dict[str, Any] = defaults.get("images_kwargs", {})
        self._banned = np.array(self.banned_ids(), dtype=np.int64)
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

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids of a prompt that asks for a response, one placeholder per image.

        An engine takes these rather than the text, to which it would add a second BOS where the
        template has written one.
        """
        input_ids, _, _ = self._tokenize(self.chat_text(turns, add_generation_prompt=True))
        return [int(token) for token in input_ids]

    def images(self, references: Sequence[str]) -> list[Image.Image]:
        """The images of these references, decoded."""
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
        if response_ids is None:
            segments = self._segments(id, [*prompt, *turns], context=len(prompt))
        else:
            segments = [(self.chat_text(prompt, add_generation_prompt=True), False)]
        text, model_inputs = self._expand(
            id, "".join(part for part, _ in segments), images, image_inputs
        )
        # In one piece: a tokenizer may treat the start of a text otherwise than its middle.
        input_ids, starts_T, ends_T = self._tokenize(text)
        target_mask = np.zeros(len(input_ids), dtype=bool)
        # Targets are counted from the end, since image placeholders were expanded before them.
        end = len(text)
        for part, is_target in reversed(segments):
            start = max(0, end - len(part))
            if is_target:
                target_mask |= (starts_T < end) & (ends_T > start) & (ends_T > starts_T)
            end = start
        if response_ids is not None:
            sampled = np.asarray(response_ids, dtype=np.int64)
            input_ids = np.concatenate([input_ids, sampled])
            target_mask = np.concatenate([target_mask, np.ones(len(sampled), dtype=bool)])
        self._refuse_banned(id, input_ids[target_mask])
        return Encoded(input_ids, target_mask, model_inputs)

    def _refuse_banned(self, id: str, targets: np.ndarray) -> None:
        hit = self._banned[np.isin(self._banned, targets)]
        if len(hit):
            names = self.tokenizer.convert_ids_to_tokens(hit[:3].tolist())
            raise ValueError(
                f"row {id}: {', '.join(map(str, names))} among the target tokens, which no "
                "policy can emit; a placeholder or special token may stand in the text"
            )

    def _segments(self, id: str, turns: Sequence[Turn], *, context: int) -> list[tuple[str, bool]]:
        """Split the template's text into context and target parts, in order.

        The first `context` turns hold no target. The targets' places are found by rendering marks
        in their stead: once for the whole conversation, since rendering is what costs.
        """
        targets = [i for i, t in enumerate(turns) if i >= context and t.role == "assistant"]
        if not targets:
            raise ValueError(f"row {id}: no assistant turn to learn from")
        marks = {index: f"\x02{index}\x03" for index in targets}
        marked = [replace(t, text=marks[i]) if i in marks else t for i, t in enumerate(turns)]
        first = targets[0]
        head = self.chat_text(turns[:first], add_generation_prompt=True)
        _, found, suffix = self.chat_text(marked[: first + 1]).partition(marks[first])
        rest = self.chat_text(marked)
        segments: list[tuple[str, bool]] = []
        lead = ""
        for index in targets:
            before, mark, rest = rest.partition(marks[index])
            if index == first:
                lead = before[len(head) :]
                found = found if before.startswith(head) else ""
            if not (mark and found and before.endswith(lead) and rest.startswith(suffix)):
                raise ValueError(
                    f"row {id}: the chat template rewrites earlier turns, so the target tokens "
                    "cannot be located"
                )
            target, after = self._split_after_eos(lead + turns[index].text + suffix)
            segments += [(before[: len(before) - len(lead)], False), (target, True), (after, False)]
            rest = rest[len(suffix) :]
        return segments

    def _split_after_eos(self, text: str) -> tuple[str, str]:
        """An assistant turn's target text, EOS included, and what the template writes after it.

        LLaVA-1.5's own template writes no EOS; it was trained with one, and without it a model
        would not learn to stop.
        """
        eos = str(self.tokenizer.eos_token)
        head, found, rest = text.partition(eos)
        if found:
            return head + eos, rest
        target = text.rstrip()
        if target.endswith(tuple(self.tokenizer.all_special_tokens)):
            return target, text[len(target) :]
        return target + eos, ""

    def _expand(
        self,
        id: str,
        text: str,
        images: Sequence[str],
        inputs: dict[str, Tensor] | None,
    ) -> tuple[str, dict[str, Tensor]]:
        """The text with every placeholder repeated as often as its image has features."""
        placeholders = text.count(self.processor.image_token)
        number = len(images) if inputs is None else len(inputs["pixel_values"])
        if placeholders != number:
            raise ValueError(f"row {id}: {placeholders} image placeholders, {number} images")
        if not placeholders:
            return text, {}
        if inputs is None:
            inputs = self._image_inputs(tuple(images))
        parts = text.split(self.processor.image_token)
        expanded = parts[0] + "".join(
            self.processor.replace_image_token(inputs, index) + part
            for index, part in enumerate(parts[1:])
        )
        # A grid of tiles, for the placeholders, is a list and not for the model.
        return expanded, {
            name: value for name, value in inputs.items() if isinstance(value, Tensor)
        }

    def _tokenize(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids of a sequence's text, as the engine makes them (BOS unless the template wrote it),
        and where in the text each token starts and ends (characters).
        """
        has_bos = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=not has_bos)
        spans = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        return np.asarray(encoding.ids, dtype=np.int64), spans[:, 0], spans[:, 1]

    def _image_inputs(self, images: tuple[str, ...]) -> dict[str, Tensor]:
        if (hit := self._cache.get(images)) is not None:
            self._cache.move_to_end(images)
            return hit
        process = self.processor.image_processor
        made = process(self.images(images), return_tensors="pt", **self._image_settings)
        inputs = dict(made.data)
        self._cache[images] = inputs
        self._cached_bytes += _num_bytes(inputs)
        while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._cached_bytes -= _num_bytes(old)
        return inputs

    def image_inputs(
        self, images: Sequence[str], noise: ImageNoise | None = None
    ) -> dict[str, Tensor]:
        """What the model is given for these images; with `noise`, their normalised pixels distorted
        (all images of a row by one draw).
        """
        inputs = self._image_inputs(tuple(images))
        if noise is None:
            return inputs
        return {**inputs, "pixel_values": add_noise(inputs["pixel_values"], noise)}

    def merge(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Concatenate the image tensors of several rows along their first axis."""
        names = sorted({name for item in inputs for name in item})
        return {name: torch.cat([item[name] for item in inputs if name in item]) for name in names}


def _num_bytes(inputs: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor))


def check_model_folder(
    model_dir: str | Path,
    *,
    families: Sequence[str] = SUPPORTED_MODEL_TYPES,
    weights: bool = True,
) -> dict[str, Any]:
    """The folder's config, after checking that it is a VLM of one of `families`, with its processor
    and, unless told otherwise, its weights.

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
    if model_type not in families:
        raise UserError(
            f"{folder}: model_type {model_type!r} is not supported; "
            f"families that work: {', '.join(families)}"
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
