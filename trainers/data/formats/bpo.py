r"""BPO (arXiv 2403.08730): one prompt with completions of different origin and score.

    {"image": "coco/1.jpg", "prompt": "<image>\nDescribe it.", "completions": [
        {"score": 1, "response": "A cat.", "type": "gt"},
        {"score": 0, "response": "A dog.", "type": "llm-hal"}]}

Source: `data_generation/` of pipilurj/bootstrapped-preference-optimization-BPO, which pairs all
completions of different score; here all are candidates, and the best and the worst are the pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainers.data.errors import UserError
from trainers.data.formats.base import (
    Content,
    Format,
    Row,
    best_and_worst,
    id_of,
    number_of,
    text_of,
)
from trainers.data.records import Candidate
from trainers.data.rows import answer, image_references, prompt_turns


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    """Completions that are objects with a score and no annotations."""
    lists = [row["completions"] for row in rows if row.get("completions") is not None]
    return {"prompt", "completions"} <= columns and any(map(_scored, lists))


def _scored(completions: Any) -> bool:
    return isinstance(completions, list) and any(
        isinstance(item, dict) and "score" in item and "annotations" not in item
        for item in completions
    )


def read(row: Row) -> Content:
    """The prompt with every completion."""
    if row.get("prompt") is None:
        raise UserError("no prompt")
    references = image_references(row)
    completions = row.get("completions")
    if not isinstance(completions, list) or not completions:
        raise UserError("completions is not a list of objects")
    candidates = tuple(_candidate(item, i) for i, item in enumerate(completions, 1))
    chosen, rejected, is_tie = best_and_worst(candidates)
    return Content(
        prompt=prompt_turns(row["prompt"], len(references)),
        images=tuple(references),
        id=id_of(row),
        id_repeats=True,
        chosen=chosen,
        rejected=rejected,
        candidates=candidates,
        is_tie=is_tie,
    )


def _candidate(item: Any, number: int) -> Candidate:
    where = f"completion {number}"
    text = answer(item, "response") if isinstance(item, dict) else None
    if text is None:
        raise UserError(f"{where} has no response")
    return Candidate(
        text=text,
        label=text_of(item, "type") or "",
        score=number_of(item.get("score"), f"{where} score"),
    )


FORMAT = Format(
    name="bpo",
    title="BPO",
    needs="prompt and completions with response and score",
    detect=detect,
    read=read,
)
