"""A sample as the model gets it: token ids, their text, and which of them are targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from trainers.data.processing import Processing
from trainers.data.records import Sample, Turn


@dataclass(frozen=True, slots=True)
class Piece:
    """A token, or a run of equal tokens that are no targets: an image's placeholders."""

    token: int
    text: str
    is_target: bool
    count: int = 1


def pieces(processing: Processing, sample: Sample, answer: str | None) -> list[Piece]:
    """The tokens of the prompt, and of `answer` if there is one; only the answer's are targets.

    Raises:
        ValueError: the answer holds tokens that no policy can emit, or the template hides it.
    """
    if answer is None:
        encoded = processing.encode(sample.id, sample.prompt, sample.images, response_ids=())
    else:
        turn = Turn(role="assistant", text=answer)
        encoded = processing.encode(sample.id, sample.prompt, sample.images, turns=(turn,))
    texts = processing.tokenizer.convert_ids_to_tokens(encoded.input_ids.tolist())
    return list(_merged(encoded.input_ids, texts, encoded.target_mask))


def _merged(ids: np.ndarray, texts: Sequence[str], mask: np.ndarray) -> Iterator[Piece]:
    tokens = zip(ids.tolist(), map(str, texts), mask.tolist(), strict=True)
    for (token, text, is_target), run in groupby(tokens):
        count = len(list(run))
        if is_target:
            # Each target is one step of the loss: a repeated word stays repeated.
            for _ in range(count):
                yield Piece(token, text, is_target)
        else:
            yield Piece(token, text, is_target, count)
