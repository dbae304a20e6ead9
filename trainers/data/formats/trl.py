"""TRL's columns: prompts, with completions or pairs, with or without a prompt of their own.

    {"prompt": "Describe it.", "images": ["cat.jpg"], "chosen": "A cat.", "rejected": "A dog."}

Source: TRL documentation, "Dataset formats and types". `margin` is the column of its reward
trainer. `candidates`, `is_tie` and `provenance` are what `quartet data convert` adds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from trainers.data.errors import UserError
from trainers.data.formats.base import Content, Format, Row, flag_of, id_of, number_of, text_of
from trainers.data.records import Candidate
from trainers.data.rows import answer, image_references, plain, prompt_turns, truth

# The columns by which other formats with a `prompt` differ.
FOREIGN = ("completions", "chosen_reason", "rejected_reason", "ls_factor", "has_image")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    """A `prompt`, or two conversations that begin with the same one."""
    if columns & set(FOREIGN):
        return False
    return "prompt" in columns or _implicit(columns, rows)


def _implicit(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"chosen", "rejected"} <= columns and all(
        isinstance(row.get(side), list) for row in rows for side in ("chosen", "rejected")
    )


def read(row: Row) -> Content:
    """A row with these columns; the others are ignored."""
    row = _explicit(row)
    if row.get("prompt") is None:
        raise UserError("no prompt")
    references = image_references(row)
    chosen, rejected = answer(row, "chosen"), answer(row, "rejected")
    completion = answer(row, "completion")
    if flag_of(row, "label") is False:
        rejected = completion if rejected is None else rejected
    else:
        chosen = completion if chosen is None else chosen
    return Content(
        prompt=prompt_turns(row["prompt"], len(references)),
        images=tuple(references),
        id=id_of(row),
        kind=str(row.get("kind") or ""),
        truth=truth(row),
        chosen=chosen,
        rejected=rejected,
        candidates=_candidates(row.get("candidates")),
        is_tie=flag_of(row, "is_tie") or False,
        margin=number_of(row.get("margin"), "margin"),
        provenance=_provenance(row.get("provenance")),
    )


def _explicit(row: Row) -> Row:
    """An implicit prompt is what both conversations begin with."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if row.get("prompt") is not None or not isinstance(chosen, list):
        return row
    if not isinstance(rejected, list):
        raise UserError("no prompt, and chosen and rejected are not both conversations")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    # Equal answers: the last turn is the answer all the same.
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    if len(chosen) != shared + 1 or len(rejected) != shared + 1:
        raise UserError("chosen and rejected differ before their last turn; give a prompt")
    return {**row, "prompt": chosen[:shared]}


def _candidates(value: Any) -> tuple[Candidate, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError("candidates is not a list of objects")
    return tuple(_candidate(item, f"candidate {i}") for i, item in enumerate(value, 1))


def _candidate(item: dict[str, Any], where: str) -> Candidate:
    text = answer(item, "text")
    if text is None:
        raise UserError(f"{where} has no text")
    aspects = _json_object(item.get("aspects")) or {}
    return Candidate(
        text=text,
        label=text_of(item, "label") or "",
        score=number_of(item.get("score"), f"{where} score"),
        critique=text_of(item, "critique"),
        aspects={
            name: score
            for name, value in aspects.items()
            if (score := number_of(value, f"{where} {name}")) is not None
        },
    )


def _provenance(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = plain(_json_object(value) or {})
    return found


def _json_object(value: Any) -> dict[str, Any] | None:
    """An object, also as JSON text, which is how parquet holds ones of differing keys."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    return value if isinstance(value, dict) else None


FORMAT = Format(
    name="trl",
    title="TRL",
    needs="prompt, or chosen and rejected as conversations",
    detect=detect,
    read=read,
)
