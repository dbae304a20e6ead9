"""What judges ask of models: plain functions, so that a judge can be tested without one.

`actors` makes them of an engine, a scoring copy or an HTTP endpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainers.data.records import Turn


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question to a model."""

    turns: tuple[Turn, ...]
    images: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str, images: tuple[str, ...] = ()) -> Prompt:
        """A single user turn; the images stand at its start."""
        return cls((Turn(role="user", text=text, num_images=len(images)),), images)


@dataclass(frozen=True, slots=True)
class Failed:
    """In place of an answer: why there is none."""

    reason: str


Complete = Callable[[Sequence[Prompt]], list[str | Failed]]
"""The model's written answer to each prompt."""
Choose = Callable[[Sequence[Prompt], Sequence[str]], list[dict[str, float] | Failed]]
"""The probability of each of some words as the whole first token of the answer, to each prompt.

They are shares of the full softmax, so they need not add up to 1.
"""
