"""VLFeedback: one instruction, answers of several models, GPT-4V's ratings with rationales.

    {"id": "svit-1", "prompt": "What is it?", "img_path": "1.jpg", "models": ["a", "b"],
     "completions": [{"model": "a", "response": "A cat.", "annotations": {
        "Helpfulness": {"Rating": "5", "Rationale": "Direct."}, "Visual Faithfulness": {...},
        "Ethical Considerations": {...}}}, ...]}

Source: `run_dpo.py` of vlf-silkie/VLFeedback: an answer's score is the mean of its ratings, and one
whose ratings are not all numbers ("N/A") has none. In parquet, `completions` is an object of lists.
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
    rest_of,
    text_of,
)
from trainers.data.records import Candidate
from trainers.data.rows import answer, image_references, prompt_turns


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    """Completions with annotations."""
    lists = [row["completions"] for row in rows if row.get("completions") is not None]
    return {"prompt", "completions"} <= columns and any(map(_annotated, lists))


def _annotated(completions: Any) -> bool:
    if isinstance(completions, list):
        completions = next((item for item in completions if isinstance(item, dict)), None)
    return isinstance(completions, dict) and "annotations" in completions


def read(row: Row) -> Content:
    """The instruction with every answer; best and worst by mean rating are the pair."""
    if row.get("prompt") is None:
        raise UserError("no prompt")
    path = row.get("img_path")
    has_image = any(row.get(name) not in (None, []) for name in ("image", "images"))
    references = image_references(row if has_image else {"image": path})
    items = _completions(row.get("completions"))
    candidates = tuple(_candidate(item, f"completion {i}") for i, item in enumerate(items, 1))
    chosen, rejected, is_tie = best_and_worst(candidates)
    return Content(
        prompt=prompt_turns(row["prompt"], len(references)),
        images=tuple(references),
        id=id_of(row),
        chosen=chosen,
        rejected=rejected,
        candidates=candidates,
        is_tie=is_tie,
        provenance=rest_of(row, ("img_path",)),
    )


def _completions(value: Any) -> list[Any]:
    """A list of objects, out of an object of lists too."""
    if isinstance(value, dict):
        lists = {name: items for name, items in value.items() if isinstance(items, list)}
        lengths = {len(items) for items in lists.values()}
        if "response" not in lists or len(lengths) != 1:
            raise UserError("completions has no responses, or lists of different lengths")
        return [{name: items[i] for name, items in lists.items()} for i in range(lengths.pop())]
    if not isinstance(value, list) or not value:
        raise UserError("completions is not a list of objects")
    return value


def _candidate(item: Any, where: str) -> Candidate:
    text = answer(item, "response") if isinstance(item, dict) else None
    if text is None:
        raise UserError(f"{where} has no response")
    annotations = item.get("annotations") or {}
    if not isinstance(annotations, dict):
        raise UserError(f"{where} has annotations that are a {type(annotations).__name__}")
    aspects = {
        name: value if isinstance(value, dict) else {}
        for name, value in annotations.items()
        if value is not None
    }
    ratings = {name: _rating(value.get("Rating")) for name, value in aspects.items()}
    known = {name: rating for name, rating in ratings.items() if rating is not None}
    whole = bool(ratings) and len(known) == len(ratings)
    reasons = [
        f"{name}: {reason}"
        for name, value in aspects.items()
        if (reason := text_of(value, "Rationale")) is not None
    ]
    return Candidate(
        text=text,
        label=text_of(item, "model") or "",
        score=sum(known.values()) / len(known) if whole else None,
        critique="\n".join(reasons) or None,
        aspects=known,
    )


def _rating(value: Any) -> float | None:
    try:
        return number_of(value, "Rating")
    except UserError:
        return None  # "N/A": the judge did not say, which is no rating and no fault of the row


FORMAT = Format(
    name="vlfeedback",
    title="VLFeedback",
    needs="prompt and completions with response and annotations",
    detect=detect,
    read=read,
)
