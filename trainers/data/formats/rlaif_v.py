r"""RLAIF-V (arXiv 2405.17220): parquet with the image's bytes in each row.

    {"ds_name": "RLAIF-V", "image": {"bytes": ..., "path": "x.jpg"}, "question": "What is it?",
     "chosen": "A cat.", "rejected": "A dog.", "origin_dataset": "VQAv2", "idx": 7,
     "origin_split": "{\"type\": \"question_answering\"}", "image_path": "x.jpg"}

Source: data set `openbmb/RLAIF-V-Dataset`; `muffin/data/datasets.py` of RLHF-V/RLAIF-V, which puts
the image before the question.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

from trainers.data.errors import UserError
from trainers.data.formats.base import Content, Format, Row, id_of, rest_of, text_of
from trainers.data.rows import answer, image_references, prompt_turns

KEPT = (
    "ds_name",
    "image_path",
    "origin_dataset",
    "origin_split",
    "ds_question_id",
    "org_infos",
    "logps",
)


def detect(columns: frozenset[str], _: Sequence[Row]) -> bool:
    """A `question` in the place of a prompt."""
    return {"question", "chosen", "rejected"} <= columns and "prompt" not in columns


def read(row: Row) -> Content:
    """The pair; where there is no `image`, `image_path` names the file."""
    question = text_of(row, "question")
    if question is None:
        raise UserError("no question")
    path = row.get("image_path")
    references = image_references(row if row.get("image") is not None else {"image": path})
    return Content(
        prompt=prompt_turns(question, len(references)),
        images=tuple(references),
        id=id_of(row, "idx"),
        id_repeats=True,
        kind=_kind(row),
        chosen=answer(row, "chosen"),
        rejected=answer(row, "rejected"),
        provenance=rest_of(row, KEPT),
    )


def _kind(row: Row) -> str:
    """The question's type, which `origin_split` holds as JSON text."""
    split = row.get("origin_split")
    if isinstance(split, str):
        with contextlib.suppress(ValueError, RecursionError):
            split = json.loads(split)
    kind = split.get("type") if isinstance(split, dict) else None
    return kind if isinstance(kind, str) else ""


FORMAT = Format(
    name="rlaif-v",
    title="RLAIF-V",
    needs="question, chosen, rejected",
    detect=detect,
    read=read,
)
