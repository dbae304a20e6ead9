r"""LLaVA's conversations, with the pairs that others add to them.

    {"id": "7", "image": "cat.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}

The last answer is `chosen`, what comes before it the prompt. The worse answer stands in
`rejected_conversations` (POVID), in `chosen` and `rejected` messages (LLaMA-Factory), or is one of
`output_1` and `output_2`, of which `preference` names the better (LLaVA-RLHF).
Source: haotian-liu/LLaVA `docs/Finetune_Custom_Data.md`; YiyangZhou/POVID; llava-rlhf/LLaVA-RLHF.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainers.data.errors import UserError
from trainers.data.formats.base import Content, Format, Row, id_of, refuse, rest_of, text_of
from trainers.data.records import Candidate
from trainers.data.rows import answer, image_references, prompt_turns

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
Message = dict[str, str]


def detect(columns: frozenset[str], _: Sequence[Row]) -> bool:
    """Turns of `from` and `value`."""
    return "conversations" in columns


def read(row: Row) -> Content:
    """The conversation up to its last answer, that answer, and a worse one."""
    refuse(row, "video", "videos")
    references = image_references(row)
    messages = _messages(row.get("conversations"), "conversations")
    if system := text_of(row, "system"):
        messages.insert(0, {"role": "system", "content": system})
    chosen = rejected = None
    if messages and messages[-1]["role"] == "assistant":
        chosen = answer({"conversations": [messages.pop()]}, "conversations")
    if row.get("rejected_conversations") is not None:
        rejected = _rejected(row, messages)
    elif row.get("chosen") is not None or row.get("rejected") is not None:
        chosen, rejected = _one(row, "chosen"), _one(row, "rejected")
    candidates: tuple[Candidate, ...] = ()
    is_tie = False
    if row.get("output_1") is not None:
        candidates, chosen, rejected = _compared(row)
        is_tie = chosen is None
    return Content(
        prompt=prompt_turns(messages, len(references)),
        images=tuple(references),
        id=id_of(row),
        id_repeats=True,  # the released 665k mixture has several conversations an image
        chosen=chosen,
        rejected=rejected,
        candidates=candidates,
        is_tie=is_tie,
        provenance=rest_of(row, ("model", "source", "hallucination", "length_bonus")),
    )


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} is not a list of turns")
    return [_message(turn, f"{where} turn {i}") for i, turn in enumerate(value, 1)]


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
        raise UserError(f"{where} is not an object with from and value")
    speaker, text = turn["from"], turn["value"]
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise UserError(f"{where} is from {speaker!r}; use {', '.join(ROLES)}")
    if not isinstance(text, str):
        raise UserError(f"{where} has a value that is a {type(text).__name__}")
    return {"role": ROLES[speaker], "content": text}


def _rejected(row: Row, prompt: list[Message]) -> str | None:
    """The last turn of the worse conversation, which has to begin as the better one does."""
    where = "rejected_conversations"
    messages = _messages(row[where], where)
    own = [item for item in prompt if item["role"] != "system"]
    if [item for item in messages[:-1] if item["role"] != "system"] != own:
        raise UserError(f"{where} begins with other turns than conversations")
    return answer({where: messages[-1:]}, where)


def _one(row: Row, column: str) -> str | None:
    """A message of `from` and `value`, a list that ends with one, or text."""
    value = row.get(column)
    value = value[-1] if isinstance(value, list) and value else value
    if isinstance(value, dict):
        value = [_message(value, column)]
    return answer({column: value}, column)


def _compared(row: Row) -> tuple[tuple[Candidate, ...], str | None, str | None]:
    first, second = _one(row, "output_1"), _one(row, "output_2")
    if first is None or second is None:
        raise UserError("output_1 and output_2 are compared, and one of them is missing")
    candidates = (
        Candidate(text=first, label="output_1"),
        Candidate(text=second, label="output_2"),
    )
    preference = row.get("preference")
    if preference in (1, 2):
        chosen, rejected = (first, second) if preference == 1 else (second, first)
        return candidates, chosen, rejected
    if preference == 0:
        return candidates, None, None
    raise UserError(f"preference is {str(preference)[:40]!r}; use 1, 2, or 0 for a tie")


FORMAT = Format(name="llava", title="LLaVA", needs="conversations", detect=detect, read=read)
