"""The drawn world's held-out scenes as a benchmark, for best-of-N and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from cluster.heldout import MAX_TOKENS, HeldOut
from trainers.benchmarks.files import json_lines
from trainers.benchmarks.questions import Answer, Question
from trainers.data.images import ImageStore
from trainers.data.records import Sample
from trainers.evaluation import caption_metrics, pope_metrics

CAPTIONS = "captions"
YES_NO_TOKENS = 4


class DrawnWorld:
    """Captions and POPE questions, measured as every comparison measures them."""

    name = "drawn"
    needs_judge = False
    notes: tuple[str, ...] = ()

    def __init__(self, store: ImageStore, num_scenes: int):
        held_out = HeldOut(store, num_scenes, 0)
        self.questions = [
            _question(sample, CAPTIONS, None, store, MAX_TOKENS) for sample in held_out.captions
        ] + [
            _question(sample, split, label, store, YES_NO_TOKENS)
            for split, label, sample in held_out.questions
        ]

    def metrics(self, answers: Sequence[Answer]) -> dict[str, float]:
        """`caption_metrics` and `pope_metrics` of `trainers.evaluation`."""
        pairs = list(zip(self.questions, answers, strict=True))
        captions = [(q.truth, a.text, a.num_tokens) for q, a in pairs if q.label is None]
        asked = [(q.part, q.label, a.text) for q, a in pairs if q.label is not None]
        return caption_metrics(captions) | pope_metrics(asked)

    def answer_files(self, answers: Sequence[Answer]) -> dict[str, str]:
        """One line a question."""
        rows = (
            {"id": q.id, "question": q.text, "answer": a.text, "truth": q.truth}
            for q, a in zip(self.questions, answers, strict=True)
        )
        return {"answers.jsonl": json_lines(rows)}


def _question(
    sample: Sample, part: str, label: str | None, store: ImageStore, max_tokens: int
) -> Question:
    return Question(
        id=sample.id,
        part=part,
        image=store.path(sample.images[0]),
        text=sample.prompt[0].text,
        max_tokens=max_tokens,
        label=cast(Literal["yes", "no"] | None, label),
        truth=sample.truth or {},
    )
