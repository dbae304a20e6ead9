"""How long the prompts of a file are in a model's tokens: what fits is known before a run."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from trainers.data.errors import UserError
from trainers.data.processing import Processing
from trainers.data.sample_index import SampleIndex


def prompt_lengths(index: SampleIndex, processing: Processing) -> Iterator[tuple[str, int]]:
    """Name and prompt length (tokens, images expanded) of each usable row, one at a time; 0 where
    an image cannot be decoded.

    Raises:
        UserError: the chat template does not place the images.
    """
    # Where every image becomes equally many tokens (one crop), one is processed for all.
    alike = processing.images_are_alike()
    pixels: dict[int, dict[str, Tensor]] = {0: {}}
    for name, content in index.contents():
        number = len(content.images)
        known = pixels.get(number)
        images: tuple[str, ...] = ()
        if known is None:
            try:
                images = index.file.sample(name, content).images
            except UserError:
                yield name, 0  # dropped with its reason when it is taken
                continue
        try:
            encoded = processing.encode(
                name,
                content.prompt,
                images,
                response_ids=(),
                image_inputs=known or None,
            )
        except ValueError as error:
            raise UserError(f"{index.file.path}: {error}; check the chat template") from None
        if alike:
            pixels.setdefault(number, encoded.model_inputs)
        yield name, len(encoded.input_ids)
