"""How long the prompts of a file are in a model's tokens: what fits is known before a run."""

from __future__ import annotations

from collections.abc import Iterator

from trainers.data.errors import UserError
from trainers.data.processing import Processing
from trainers.data.sample_index import SampleIndex


def prompt_lengths(index: SampleIndex, processing: Processing) -> Iterator[tuple[str, int]]:
    """Name and prompt length (tokens, images expanded) of each usable row, one at a time; 0 where
    an image cannot be decoded.

    Raises:
        UserError: the chat template does not place the images.
    """
    alike = processing.images_are_alike()
    for name, content in index.contents():
        # Where every image becomes equally many tokens (one crop), none needs to be decoded.
        images: tuple[str, ...] = ("any",) * len(content.images)
        if images and not alike:
            try:
                images = index.file.sample(name, content).images
            except UserError:
                yield name, 0  # dropped with its reason when it is taken
                continue
        try:
            ids = processing.expanded_prompt_ids(name, content.prompt, images)
        except ValueError as error:
            raise UserError(f"{index.file.path}: {error}; check the chat template") from None
        yield name, len(ids)
