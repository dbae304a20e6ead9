"""MMHal-Bench: 96 open questions whose answers a judge rates 0 to 6 (arXiv 2309.14525).

`response_template.json` of `Shengcao1006/MMHal-Bench`, a list of `question_type`, `question_topic`,
`image_id`, `image_src`, `image_content`, `question`, `gt_answer`, `model_answer`. The published
numbers are GPT-4's ratings of one prompt; a rating by another judge is another metric.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.benchmarks.files import fields, find_file, find_image, read_json
from trainers.benchmarks.questions import Answer, Options, Question, limited
from trainers.data.errors import UserError
from trainers.evaluation import ratio

MAX_TOKENS = 512
BEST = 6
HALLUCINATED_BELOW = 3
TYPES = (
    "attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic",
    "other",
)  # fmt: skip
FILES = ("response_template.json", "mmhal-bench_answer_template.json")
SOURCE = "huggingface.co/datasets/Shengcao1006/MMHal-Bench"


def parse_rating(text: str) -> int | None:
    """The rating in a judge's text: the one s in 0..6 with `rating: s` in it, whatever the case.

    None if there is none or more than one, where the original scripts put 0. For judges of your
    own that read a language model's verdict.
    """
    found = [s for s in range(BEST + 1) if f"rating: {s}" in text.lower()]
    return found[0] if len(found) == 1 else None


class MMHal:
    """Questions, and metrics of answers that a judge has rated."""

    name = "mmhal"
    needs_judge = True

    def __init__(self, data: Path, options: Options):
        if options.split is not None or options.prompt is not None:
            raise UserError("--split, --prompt: MMHal-Bench has one list of questions in its file")
        path = find_file(data, FILES, SOURCE)
        self.rows: list[dict[str, Any]] = read_json(path)
        self.questions = limited(
            [
                _question(row, number, path, data, options.max_tokens or MAX_TOKENS)
                for number, row in enumerate(self.rows, 1)
            ],
            options.limit,
        )
        self.notes = (
            "rated by your judge: compare only with numbers of the same judge, not with GPT-4's",
        )

    def metrics(self, answers: Sequence[Answer]) -> dict[str, float]:
        """`mmhal_score` mean rating 0..6; `mmhal_hallucination_rate` share below 3;
        `mmhal_informativeness` mean of (s - 3 if s >= 3 else s) / 3; and the mean by question type.

        Over the answers that were rated. `mmhal_unrated` counts the others; the original scripts
        count those as 0, which is `mmhal_score_unrated_as_0`.
        """
        ratings = [rating_or_none(answer.score) for answer in answers]
        rated = [rating for rating in ratings if rating is not None]
        ones = [1.0] * len(rated)
        below = [float(rating < HALLUCINATED_BELOW) for rating in rated]
        useful = [(r - 3 if r >= HALLUCINATED_BELOW else r) / 3 for r in rated]
        result: dict[str, float] = {}
        for name, values in (("score", rated), ("hallucination_rate", below)):
            result[f"mmhal_{name}"], result[f"mmhal_{name}_se"] = ratio(values, ones)
        result["mmhal_informativeness"] = ratio(useful, ones)[0]
        result["mmhal_unrated"] = float(len(answers) - len(rated))
        result["mmhal_score_unrated_as_0"] = sum(rated) / len(answers) if answers else math.nan
        for kind in dict.fromkeys(question.truth["question_type"] for question in self.questions):
            own = [
                rating
                for question, rating in zip(self.questions, ratings, strict=True)
                if question.truth["question_type"] == kind and rating is not None
            ]
            result[f"mmhal_{kind}"] = sum(own) / len(own) if own else math.nan
        return result

    def answer_files(self, answers: Sequence[Answer]) -> dict[str, str]:
        """The template with `model_answer` filled in: `--response` of `eval_gpt_mmhal.py`."""
        rows = [
            {**self.rows[question.truth["row"]], "model_answer": answer.text}
            for question, answer in zip(self.questions, answers, strict=True)
        ]
        return {"mmhal_response.json": json.dumps(rows, indent=2) + "\n"}


def rating_or_none(score: float | None) -> float | None:
    """A judge's score as a rating; None if it failed or is outside 0..6."""
    return score if score is not None and 0 <= score <= BEST else None


def _question(
    row: dict[str, Any], number: int, path: Path, data: Path, max_tokens: int
) -> Question:
    names = ("question", "gt_answer", "image_content", "image_src")
    text, gt_answer, content, source = fields(row, names, f"{path}: entry {number}")
    return Question(
        id=str(number),
        part="questions",
        image=find_image(data, str(source).rpartition("/")[2], SOURCE),
        text=text,
        max_tokens=max_tokens,
        truth={
            "row": number - 1,
            # The order of the 96 questions: the file's own words where it has them.
            "question_type": row.get("question_type") or TYPES[(number - 1) % len(TYPES)],
            "gt_answer": gt_answer,
            "image_content": content,
        },
    )
