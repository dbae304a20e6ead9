"""MM-RLHF (arXiv 2502.10391): `dpo_pairs.jsonl`, and `mm_reward_bench.jsonl`, with reasons.

    {"id": "12", "image": "long/12.jpg", "prompt": "Describe it.", "chosen": "A cat.",
     "rejected": "A dog.", "chosen_reason": "Names the animal.", "rejected_reason": "Wrong animal.",
     "is_tie": false, "ls_factor": 1.0}

Source: `llava/train/train_dpo.py` of Kwai-YuanQi/MM-RLHF. An instruction with several pairs has
its id in each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from trainers.data.errors import UserError
from trainers.data.formats.base import (
    Content,
    Format,
    Row,
    flag_of,
    id_of,
    number_of,
    refuse,
    rest_of,
    text_of,
)
from trainers.data.records import Candidate
from trainers.data.rows import answer, image_references, prompt_turns

TELLING = frozenset(("chosen_reason", "rejected_reason", "ls_factor", "has_image"))
KINDS = ("long", "short", "mcq", "safety")
"""Folders of the images: the data set's parts. The fifth, `video`, is refused."""
NO_REASON = "no_critic"
"""What the original writes where a pair has no reason."""


def detect(columns: frozenset[str], _: Sequence[Row]) -> bool:
    """A pair with reasons or with the weight of its margin."""
    return {"prompt", "chosen", "rejected"} <= columns and bool(columns & TELLING)


def read(row: Row) -> Content:
    """The pair, each side with its reason as the critique."""
    refuse(row, "video")
    if row.get("prompt") is None:
        raise UserError("no prompt")
    references = image_references(row)
    chosen, rejected = answer(row, "chosen"), answer(row, "rejected")
    sides = (("chosen", chosen), ("rejected", rejected))
    return Content(
        prompt=prompt_turns(row["prompt"], len(references)),
        images=tuple(references),
        id=id_of(row),
        id_repeats=True,
        kind=_kind(row),
        chosen=chosen,
        rejected=rejected,
        candidates=tuple(
            Candidate(text=text, label=side, critique=_reason(row, side))
            for side, text in sides
            if text is not None
        ),
        is_tie=flag_of(row, "is_tie") or False,
        margin=number_of(row.get("ls_factor"), "ls_factor"),
        provenance=rest_of(row, ("reference_chosen_logp", "reference_rejected_logp")),
    )


def _reason(row: Row, side: str) -> str | None:
    reason = text_of(row, f"{side}_reason")
    return None if reason == NO_REASON else reason


def _kind(row: Row) -> str:
    image = row.get("image")
    parts = PurePosixPath(image).parts if isinstance(image, str) else ()
    return next((part for part in parts if part in KINDS), "")


FORMAT = Format(
    name="mm-rlhf",
    title="MM-RLHF",
    needs="prompt, chosen, rejected and chosen_reason, rejected_reason, ls_factor or has_image",
    detect=detect,
    read=read,
)
