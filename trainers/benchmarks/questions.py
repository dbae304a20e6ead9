"""What every benchmark is made of: questions about images, and metrics of the answers to them.

Nothing here answers a question: `cluster.benchmark` asks a model, or a user brings answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One prompt about one image.

    Example: `Question(id="popular/2", part="popular", image=Path("coco/COCO_val2014_1.jpg"),
    text="Is there a dog in the image?", max_tokens=64, label="no")`
    """

    id: str
    part: str
    """What `--split` and `--limit` count by: POPE's split, AMBER's dimension."""
    image: Path | bytes
    """An image file, or the bytes of one where the benchmark's file carries them."""
    text: str
    max_tokens: int
    """Longest answer."""
    label: Literal["yes", "no"] | None = None
    """Of a yes/no question: the right answer."""
    truth: dict[str, Any] = field(default_factory=dict)
    """What the metric compares with; never shown to a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said."""

    text: str
    num_tokens: int
    """EOS included."""
    score: float | None = None
    """The judge's, where the benchmark needs one; None is a failure of the judge."""


class Benchmark(Protocol):
    """Questions read from files, and what is computed from the answers."""

    name: str
    needs_judge: bool

    @property
    def questions(self) -> Sequence[Question]:
        """All questions, in order."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before comparing these numbers with published ones; shown with them."""

    def metrics(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Metrics of one answer per question, in order."""

    def answer_files(self, answers: Sequence[Answer]) -> dict[str, str]:
        """File name -> content, in the format that the benchmark's own script reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a benchmark is read; each refuses what does not apply to it."""

    split: str | None = None
    limit: int | None = None
    """Questions of each part; None: all."""
    words: str = "original"
    """See `trainers.benchmarks.words`."""
    prompt: str | None = None
    """In place of the benchmark's own wording, where that is not in its files."""
    max_tokens: int | None = None


def limited(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """The first `limit` questions of each part."""
    if limit is None:
        return list(questions)
    seen: dict[str, int] = {}
    kept = []
    for question in questions:
        seen[question.part] = seen.get(question.part, 0) + 1
        if seen[question.part] <= limit:
            kept.append(question)
    return kept
