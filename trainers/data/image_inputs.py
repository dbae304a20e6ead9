"""Images as a model's own processor turns them into tensors, and as tokens of the prompt.

Every image is processed alone, whatever stands beside it: so does the engine, which caches images
one by one. Tensors keep the model's own names (`pixel_values`, `image_grid_thw`, `image_sizes`,
`pixel_attention_mask`, ...); nothing here knows a family.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from trainers.data.images import ImageStore

SHAPES = ((64, 64), (900, 300), (300, 900))
"""Widths and heights that a processor which looks at them would treat differently."""


class ImageInputs:
    """The image part of a processor, with a cache of what it made.

    Args:
        processor: of a VLM folder.
        store: where the images of the rows are.
        cache_bytes: budget of the cache.
    """

    def __init__(self, processor: Any, store: ImageStore, cache_bytes: int):
        self.processor, self.store = processor, store
        # What the family's processor asks of its image part, as the grid of an image's tiles.
        defaults = getattr(type(processor).valid_processor_kwargs, "_defaults", {})
        self._settings: dict[str, Any] = defaults.get("images_kwargs", {})
        self._names = set(processor.model_input_names) - set(processor.unused_input_names)
        self._cache: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._cached_bytes = 0
        self._cache_bytes = cache_bytes

    def process(self, image: Image.Image) -> dict[str, Any]:
        """Everything that the processor says of one image; some of it is not for the model."""
        made = self.processor.image_processor([image], return_tensors="pt", **self._settings)
        return dict(made.data)

    def of(self, reference: str) -> dict[str, Any]:
        """The same for an image of the store, from the cache if it is there."""
        if (hit := self._cache.get(reference)) is not None:
            self._cache.move_to_end(reference)
            return hit
        inputs = self.process(self.store.get(reference))
        self._cache[reference] = inputs
        self._cached_bytes += _num_bytes(inputs)
        while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._cached_bytes -= _num_bytes(old)
        return inputs

    def for_model(self, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """What the model is given for images that were processed, in their order."""
        return merge(
            [{name: item[name] for name in item if name in self._names} for item in inputs]
        )

    def text(self, inputs: Mapping[str, Any], index: int = 0) -> str:
        """What stands in the prompt for image `index` of processed inputs: its placeholders and the
        marks around them.
        """
        return str(self.processor.replace_image_token(inputs, index))

    def text_of(self, reference: str) -> str:
        """The same for an image of the store, which is looked up only if it matters."""
        return self.alike_text or self.text(self.of(reference))

    @cached_property
    def alike_text(self) -> str | None:
        """What stands in the prompt for any image, where that is the same whatever its size."""
        texts = {self.text(self.process(Image.new("RGB", shape))) for shape in SHAPES}
        return texts.pop() if len(texts) == 1 else None


def merge(inputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate image tensors of the same names along their first axis.

    Where images have different numbers of tiles, the missing ones are zeros at the end, as in the
    families' own processors; the models leave them out.
    """
    names = sorted({name for item in inputs for name in item})
    return {name: _concatenate([item[name] for item in inputs if name in item]) for name in names}


def _concatenate(tensors: Sequence[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]  # the cache's own: a copy would double an image's bytes
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    return torch.cat([_pad(tensor, shape) for tensor in tensors])


def _pad(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros at the end of every axis but the first, up to `shape`."""
    missing = [want - have for want, have in zip(shape, tensor.shape[1:], strict=True)]
    if not any(missing):
        return tensor
    return functional.pad(tensor, [side for size in reversed(missing) for side in (0, size)])


def _num_bytes(inputs: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor))
