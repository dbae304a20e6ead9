"""From turns and images to token ids and pixel tensors, by the model's own processor.

One wrapper for every process that holds a model, so that the rollout engine, the trainer and the
judge see the same tokens. Sampled responses are never re-tokenised; prompts are never truncated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainers.data.errors import UserError
from trainers.data.image_inputs import ImageInputs, merge
from trainers.data.images import ImageStore
from trainers.data.model_folder import check_model_folder, families_that_work
from trainers.data.noise import ImageNoise, add_noise
from trainers.data.prompt_cache import PromptCache
from trainers.data.records import Turn


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one row (image placeholders expanded) and which of them are targets."""

    input_ids: np.ndarray
    """int64, shape (T,)."""
    target_mask: np.ndarray
    """bool, shape (T,)."""
    make_inputs: Callable[[], dict[str, Tensor]]

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """What the model is given for the images, made when it is asked for: of a step's rows a
        rank needs only its own, and pixels of a whole round would not fit the cache's budget.
        """
        return self.make_inputs()


class Processing:
    """The processor of one model folder, with an image store to resolve references.

    Args:
        model_dir: a Hugging Face VLM folder with processor and chat template.
        store: where the images of the rows are.
        cache_bytes: budget of the cache of preprocessed images.
    """

    def __init__(self, model_dir: str | Path, store: ImageStore, *, cache_bytes: int = 2**28):
        from transformers import AutoConfig, AutoProcessor

        # A tokenizer needs no weights: what fits can be asked before there are any.
        family = check_model_folder(model_dir, weights=False)["model_type"]
        self.config: Any = AutoConfig.from_pretrained(model_dir)
        try:
            self.processor: Any = AutoProcessor.from_pretrained(model_dir)
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{model_dir}: its processor cannot be loaded: {reason}") from None
        _check_processor(self.processor, self.config, f"{model_dir} ({family})")
        self.tokenizer: Any = self.processor.tokenizer
        self.store = store
        self.eos_id = int(self.tokenizer.eos_token_id)
        pad_id = self.tokenizer.pad_token_id
        self.pad_id = self.eos_id if pad_id is None else int(pad_id)
        self.image_token_id = int(self.config.image_token_id)
        # Gemma 3's placeholder is another token than the one that stands for a feature.
        self._feature_token = str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))
        self._images = ImageInputs(self.processor, store, cache_bytes)
        self._banned = frozenset(self.banned_ids())
        self._prompts = PromptCache()

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding and head (may exceed the tokenizer's length)."""
        return int(self.config.get_text_config().vocab_size)

    def banned_ids(self) -> list[int]:
        """Token ids that no rollout may contain: every special token but EOS, and rows of the
        embedding that stand for no token. A sampled image placeholder would make the trainer's
        token and feature counts differ.
        """
        special = set(self.tokenizer.all_special_ids) | {self.image_token_id, self.pad_id}
        # A tokenizer that was loaded calls only those special that have a name (`image_token`);
        # the others, a chat template's marks and a grid's, are known by their flag.
        added = self.tokenizer.added_tokens_decoder
        special |= {index for index, token in added.items() if token.special}
        special |= set(self.processor.image_token_ids) | set(self.processor.video_token_ids)
        special.discard(None)
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
        noise: ImageNoise | None = None,
        image_inputs: dict[str, Tensor] | None = None,
    ) -> Encoded:
        """Encode a prompt followed by sampled tokens or by further turns.

        With `response_ids` every one of them is a target. With `turns` the targets are each
        assistant turn's tokens up to and including EOS; assistant turns of the prompt are context.
        `image_inputs` are already processed images, for callers that draw them; `images` is then
        not looked up.

        Raises:
            ValueError: tokens and images do not match; names the row.
            UserError: an image cannot be read; at once, or when `model_inputs` are asked for.
        """

        def make_inputs() -> dict[str, Tensor]:
            return self.image_inputs(images, noise) if image_inputs is None else image_inputs

        if response_ids is not None:
            head = self._prompt(id, prompt, images, image_inputs)
            sampled = np.asarray(response_ids, dtype=np.int64)
            self._refuse_banned(id, sampled)
            return Encoded(
                np.concatenate([head, sampled]),
                np.repeat([False, True], [len(head), len(sampled)]),
                make_inputs,
            )
        segments = self._segments(id, [*prompt, *turns], context=len(prompt))
        text, input_ids, starts_T, ends_T = self._expanded(
            id, "".join(part for part, _ in segments), images, image_inputs
        )
        target_mask = np.zeros(len(input_ids), dtype=bool)
        # Targets are counted from the end, since image placeholders were expanded before them.
        end = len(text)
        for part, is_target in reversed(segments):
            start = max(0, end - len(part))
            if is_target:
                target_mask |= (starts_T < end) & (ends_T > start) & (ends_T > starts_T)
            end = start
        self._refuse_banned(id, input_ids[target_mask])
        return Encoded(input_ids, target_mask, make_inputs)

    def expanded_prompt_ids(
        self, id: str, prompt: Sequence[Turn], images: Sequence[str]
    ) -> list[int]:
        """Token ids of a prompt that asks for a response, its images expanded: what a model reads.

        Where all images are alike none is looked up, and any names will do for them.

        Raises:
            ValueError: as `encode`.
        """
        ids: list[int] = self._prompt(id, prompt, images, None).tolist()
        return ids

    def _prompt(
        self,
        id: str,
        prompt: Sequence[Turn],
        images: Sequence[str],
        image_inputs: Mapping[str, Tensor] | None,
    ) -> np.ndarray:
        """The same as an array that is shared: not to be changed."""
        if image_inputs is not None:  # images without a name
            text = self.chat_text(prompt, add_generation_prompt=True)
            return self._expanded(id, text, images, image_inputs)[1]
        key = (tuple(prompt), tuple(images))
        if (known := self._prompts.get(key)) is not None:
            return known
        text = self.chat_text(prompt, add_generation_prompt=True)
        ids = self._expanded(id, text, images, None)[1]
        self._prompts.put(key, ids)
        return ids

    def _refuse_banned(self, id: str, targets: np.ndarray) -> None:
        if hit := sorted(self._banned.intersection(targets.tolist())):
            names = self.tokenizer.convert_ids_to_tokens(hit[:3])
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

    def _expanded(
        self,
        id: str,
        text: str,
        images: Sequence[str],
        inputs: Mapping[str, Tensor] | None,
    ) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        """The text with every placeholder repeated as often as its image has features, and what
        `_tokenize` makes of it.
        """
        placeholders = text.count(self.processor.image_token)
        number = len(images) if inputs is None else len(inputs["pixel_values"])
        if placeholders != number:
            raise ValueError(f"row {id}: {placeholders} image placeholders, {number} images")
        if inputs is None:
            marks = [self._images.text_of(image) for image in images]
        else:
            marks = [self._images.text(inputs, index) for index in range(number)]
        first, *others = text.split(self.processor.image_token)
        text = first + "".join(mark + part for mark, part in zip(marks, others, strict=True))
        # In one piece: a tokenizer may treat the start of a text otherwise than its middle.
        input_ids, starts_T, ends_T = self._tokenize(text)
        features = sum(mark.count(self._feature_token) for mark in marks)
        found = int((input_ids == self.image_token_id).sum())
        if found != features:
            raise ValueError(
                f"row {id}: {found} image tokens where its images have {features} features; the "
                "text may hold a placeholder of its own"
            )
        return text, input_ids, starts_T, ends_T

    def _tokenize(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids of a sequence's text, as the engine makes them (BOS unless the template wrote it),
        and where in the text each token starts and ends (characters).
        """
        has_bos = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=not has_bos)
        spans = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        return np.asarray(encoding.ids, dtype=np.int64), spans[:, 0], spans[:, 1]

    def image_inputs(
        self, images: Sequence[str], noise: ImageNoise | None = None
    ) -> dict[str, Tensor]:
        """What the model is given for these images; with `noise`, their normalised pixels distorted
        (all images of a row by one draw).

        Raises:
            UserError: noise is asked for where an image is not one square of pixels.
        """
        inputs = self._images.for_model([self._images.of(image) for image in images])
        if noise is None:
            return inputs
        pixels = inputs["pixel_values"]
        if pixels.dim() != 4 or len(pixels) != len(images):
            raise UserError(
                f"a {self.config.model_type} model's images are patches or tiles, which cannot be "
                "distorted as one picture; image noise works with LLaVA-1.5 (llava)"
            )
        return {**inputs, "pixel_values": add_noise(pixels, noise)}

    def images_are_alike(self) -> bool:
        """Whether every image becomes equally many tokens, whatever its size."""
        return self._images.alike_text is not None

    def token_inputs(self, input_ids_BT: Tensor) -> dict[str, Tensor]:
        """What the model is given per token beside the ids, under its own name: which tokens are an
        image's, for families whose positions or attention depend on it (M-RoPE).
        """
        defaults = getattr(type(self.processor).valid_processor_kwargs, "_defaults", {})
        if not defaults.get("text_kwargs", {}).get("return_mm_token_type_ids", False):
            return {}
        types = self.processor.create_mm_token_type_ids(input_ids_BT.tolist())
        named = "mm_token_type_ids" in self.processor.model_input_names
        name = "mm_token_type_ids" if named else "token_type_ids"
        return {name: torch.tensor(types, dtype=torch.long)}

    def merge(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The image tensors of several rows as one batch's."""
        return merge(inputs)


def _check_processor(processor: Any, config: Any, folder: str) -> None:
    """Refuse a processor that lacks what a conversation about images needs, in one line."""
    works = families_that_work()
    for part in ("image_processor", "tokenizer", "image_token"):
        if getattr(processor, part, None) is None:
            raise UserError(
                f"{folder}: its processor has no {part}; copy the released folder's "
                f"preprocessor_config.json and processor_config.json into it; {works}"
            )
    if not getattr(processor, "chat_template", None):
        raise UserError(
            f"{folder}: the processor has no chat template; add chat_template.jinja to it; {works}"
        )
    words = processor.tokenizer.get_vocab()
    if processor.image_token not in words:
        raise UserError(
            f"{folder}: the tokenizer has no token {processor.image_token!r}, the placeholder of "
            f"an image; add it as a special token; {works}"
        )
    if config.image_token_id not in words.values():
        raise UserError(
            f"{folder}: config.json says that token {config.image_token_id} is an image's, and the "
            f"tokenizer has none of that number; copy the released tokenizer into it; {works}"
        )
