"""Preference files with reasons: MM-RLHF's `dpo_pairs.jsonl` and RewardBench layout (JSON lines).

    id, prompt, chosen, rejected                 pairs may share an id: one question, several pairs
    image | images                               paths relative to the file's folder
    chosen_reason, rejected_reason               optional critiques of the two sides
    is_tie                                       optional: the two sides are equally good

A row that cannot be used is dropped with its reason; more than 5 % of such rows raise. Rows with a
`video` are dropped. Source: MM-RLHF (arXiv 2502.10391), its README and `train_dpo.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.data.datasets import Images
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.records import Sample
from trainers.data.row_files import open_rows
from trainers.data.rows import answer, image_references, prompt_turns, truth

MAX_DROPPED = 0.05
CATEGORIES = ("mcq", "long", "short", "safety", "video")
"""Of MM-RLHF: a row's is the first of these words in its image's path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonedPair:
    """Two answers to one sample, and why the first is better, where the file says so."""

    group: str
    """The file's id: pairs of one question share it."""
    category: str
    sample: Sample
    chosen: str
    rejected: str
    chosen_reason: str | None = None
    rejected_reason: str | None = None
    is_tie: bool = False

    @property
    def has_reasons(self) -> bool:
        """Whether both sides have a critique; MM-RLHF masks the critique loss of other pairs."""
        return bool(self.chosen_reason and self.rejected_reason)


def read_pairs(
    path: str | os.PathLike[str],
    store: ImageStore,
    *,
    image_root: str | os.PathLike[str] | None = None,
) -> tuple[list[ReasonedPair], list[str]]:
    """All usable pairs, and one line `row N: reason` for each other row.

    Raises:
        UserError: the file cannot be read, is empty, or more than 5 % of its rows cannot be used.
    """
    path = Path(path)
    images = Images(store, Path(path.parent if image_root is None else image_root))
    pairs: list[ReasonedPair] = []
    dropped: list[str] = []
    for number, _, row in open_rows(path).rows():
        try:
            pairs.append(_pair(row, f"{path.stem}-{number}", images))
        except UserError as error:
            dropped.append(f"row {number}: {' '.join(str(error).split())}")
    total = len(pairs) + len(dropped)
    if total == 0:
        raise UserError(f"{path}: empty; it needs at least one row")
    if len(dropped) > MAX_DROPPED * total:
        raise UserError(
            f"{path}: {len(dropped)} of {total} rows cannot be used, more than {MAX_DROPPED:.0%}; "
            f"mend or remove them: {'; '.join(dropped[:3])}"
        )
    return pairs, dropped


def row_sample(
    row: Mapping[str, Any],
    id: str,
    images: Images,
    *,
    chosen: str | None = None,
    rejected: str | None = None,
) -> Sample:
    """A row's prompt with its images, put into the store."""
    if row.get("prompt") is None:
        raise UserError("no prompt")
    if row.get("video") is not None and row.get("image") is None and row.get("images") is None:
        raise UserError("a video, which no supported model reads; leave such rows out")
    references = image_references(row)
    return Sample(
        id=id,
        prompt=prompt_turns(row["prompt"], len(references)),
        images=tuple(images.put(item, i) for i, item in enumerate(references, 1)),
        kind=str(row.get("kind") or ""),
        truth=truth(row),
        chosen=chosen,
        rejected=rejected,
    )


def _pair(row: Mapping[str, Any], id: str, images: Images) -> ReasonedPair:
    chosen, rejected = answer(row, "chosen"), answer(row, "rejected")
    if chosen is None or rejected is None:
        raise UserError(f"no {'chosen' if chosen is None else 'rejected'}")
    is_tie = row.get("is_tie") or False
    if not isinstance(is_tie, bool):
        raise UserError(f"is_tie is {is_tie!r}; use true or false")
    return ReasonedPair(
        group=id if row.get("id") is None else str(row["id"]),
        category=_category(row),
        sample=row_sample(row, id, images, chosen=chosen, rejected=rejected),
        chosen=chosen,
        rejected=rejected,
        chosen_reason=_reason(row, "chosen_reason"),
        rejected_reason=_reason(row, "rejected_reason"),
        is_tie=is_tie,
    )


def _reason(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{column} is a {type(value).__name__}; give text, or leave it out")
    return value.strip() or None if value else None


def _category(row: Mapping[str, Any]) -> str:
    media = [reference for reference in image_references(row) if isinstance(reference, str)]
    text = "/".join(media).lower()
    return next((word for word in CATEGORIES if word in text), str(row.get("kind") or "other"))
