"""POPE: does the model say that there is what is not there? (arXiv 2305.10355, `RUCAIBox/POPE`)

Questions are JSON lines `{"question_id", "image", "text", "label"}` in one file per split; answers
are JSON lines `{"question", "answer"}` in the same order. Positive class: yes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from trainers.benchmarks.files import (
    fields,
    find_file,
    find_image,
    json_lines,
    read_json_lines,
)
from trainers.benchmarks.questions import Answer, Options, Question, limited
from trainers.data.errors import UserError
from trainers.evaluation import POPE_SPLITS, binary_metrics, plain_words, pope_answer

MAX_TOKENS = 64
SOURCE = "github.com/RUCAIBox/POPE, output/coco (or output/seem)"
IMAGES = "COCO 2014 (cocodataset.org: val2014.zip), or GQA's images for POPE's GQA files"


def original_answer(text: str) -> str:
    """`yes` or `no`, exactly as the original `evaluate.py` reads an answer.

    The text before the first full stop, commas deleted, split at single spaces: `no` if one of
    the pieces is `No`, `no` or `not`, else `yes`. So an empty answer is yes, and so are `NO`, `no!`
    and `No` before a line break: `trainers.evaluation.pope_answer` reads those as no.
    """
    pieces = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(pieces) else "yes"


class Pope:
    """Questions of the splits, and the original's metrics as fractions in 0..1."""

    name = "pope"
    needs_judge = False

    def __init__(self, data: Path, options: Options):
        splits = POPE_SPLITS if options.split is None else (options.split,)
        if unknown := set(splits) - set(POPE_SPLITS):
            raise UserError(f"--split {unknown.pop()}: POPE has {', '.join(POPE_SPLITS)}")
        questions: list[Question] = []
        for split in splits:
            questions += _read(data, split, options.max_tokens or MAX_TOKENS)
        self.questions = limited(questions, options.limit)
        self.notes = (
            "a single published POPE value is mostly the mean F1 of the three splits",
            "an answer with neither yes nor no counts as yes: see pope_unclear",
        )

    def metrics(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Accuracy, precision, recall, F1 and yes-ratio by split, and their means over splits.

        Each has its standard error under `_se`, the questions taken as independent. A rate whose
        denominator is 0 is NaN, where the original stops with an error. `pope_unclear` is the share
        of answers that hold neither yes nor no, `pope_case_differs` the share that another reading
        of case and punctuation would turn round.
        """
        said = [original_answer(answer.text) for answer in answers]
        result: dict[str, float] = {}
        parts: dict[str, dict[str, tuple[float, float]]] = {}
        for split in dict.fromkeys(question.part for question in self.questions):
            parts[split] = binary_metrics(
                [
                    (question.label == "yes", word == "yes")
                    for question, word in zip(self.questions, said, strict=True)
                    if question.part == split
                ]
            )
            result |= {f"pope_{split}_{name}": value for name, (value, _) in parts[split].items()}
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            pairs = [part[name] for part in parts.values()]
            result[f"pope_{name}"] = sum(value for value, _ in pairs) / len(pairs)
            result[f"pope_{name}_se"] = math.hypot(*(error for _, error in pairs)) / len(pairs)
        texts = [answer.text for answer in answers]
        unclear = [
            word == "yes" and "yes" not in plain_words(text)
            for text, word in zip(texts, said, strict=True)
        ]
        differs = [pope_answer(text) != word for text, word in zip(texts, said, strict=True)]
        result["pope_unclear"] = sum(unclear) / len(texts)
        result["pope_case_differs"] = sum(differs) / len(texts)
        return result

    def answer_files(self, answers: Sequence[Answer]) -> dict[str, str]:
        """One file per split, as `evaluate.py` reads it beside the label file."""
        lines: dict[str, list[dict[str, str]]] = {}
        for question, answer in zip(self.questions, answers, strict=True):
            row = {"question": question.text, "answer": answer.text}
            lines.setdefault(question.part, []).append(row)
        return {f"pope_{split}_answers.json": json_lines(rows) for split, rows in lines.items()}


def _read(data: Path, split: str, max_tokens: int) -> list[Question]:
    path = _label_file(data, split)
    questions = []
    for number, row in enumerate(read_json_lines(path), 1):
        where = f"{path}: row {number}"
        image, text, label = fields(row, ("image", "text", "label"), where)
        if label not in ("yes", "no"):
            raise UserError(f"{where}: label {label!r} is neither 'yes' nor 'no'")
        questions.append(
            Question(
                id=f"{split}/{row.get('question_id', number)}",
                part=split,
                image=find_image(data, image, IMAGES),
                text=text,
                max_tokens=max_tokens,
                label=label,
            )
        )
    return questions


def _label_file(data: Path, split: str) -> Path:
    found = sorted(data.glob(f"*pope*_{split}.json*")) if data.is_dir() else []
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{data}: {names} are all POPE's {split} split; keep one in the folder")
    return found[0] if found else find_file(data, (f"coco_pope_{split}.json",), SOURCE)
