"""ms-swift's standard format: messages whose last turn is the answer, and a worse one beside it.

    {"messages": [{"role": "user", "content": "<image>What is it?"},
                  {"role": "assistant", "content": "A cat."}],
     "images": ["cat.jpg"], "rejected_response": "A dog."}

Also its query/response form, KTO's `label`, and the reward model's `margin`. Source: modelscope/
ms-swift `docs/source_en/Customization/Custom-dataset.md`. TRL's language-modelling rows look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainers.data.errors import UserError
from trainers.data.formats.base import (
    Content,
    Format,
    Row,
    flag_of,
    id_of,
    number_of,
    refuse,
    text_of,
)
from trainers.data.rows import answer, image_references, prompt_turns, truth

GROUNDING = ("<bbox>", "<ref-object>")


def detect(columns: frozenset[str], _: Sequence[Row]) -> bool:
    """Messages, or a query with its response."""
    return "messages" in columns or {"query", "response"} <= columns


def read(row: Row) -> Content:
    """The messages up to the last answer, that answer, and a worse one."""
    refuse(row, "videos", "audios", "tools")
    if row.get("rejected_images") not in (None, [], row.get("images")):
        raise UserError("rejected_images differ from images; both answers must see the same")
    references = image_references(row)
    messages = _messages(row)
    chosen = None
    if _role(messages[-1]) == "assistant":
        chosen = answer({"messages": [messages.pop()]}, "messages")
    rejected = _rejected(row, messages)
    if flag_of(row, "label") is False:
        if rejected is not None:
            raise UserError("label is false and there is a rejected answer beside it")
        chosen, rejected = None, chosen
    turns = prompt_turns(messages, len(references))
    for text in [*(turn.text for turn in turns), chosen or "", rejected or ""]:
        if any(mark in text for mark in GROUNDING):
            raise UserError(f"{' and '.join(GROUNDING)} stand for boxes, which are not read")
    return Content(
        prompt=turns,
        images=tuple(references),
        id=id_of(row),
        kind=str(row.get("kind") or ""),
        truth=truth({"truth": row.get("truth"), "ground_truth": row.get("solution")}),
        chosen=chosen,
        rejected=rejected,
        margin=number_of(row.get("margin"), "margin"),
    )


def _messages(row: Row) -> list[Any]:
    if row.get("messages") is None:
        return _queries(row)
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise UserError("messages is not a list of turns")
    messages = list(messages)
    if (system := text_of(row, "system")) and _role(messages[0]) != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _queries(row: Row) -> list[Any]:
    query, response = text_of(row, "query"), text_of(row, "response")
    if query is None:
        raise UserError("no messages and no query")
    messages: list[Any] = []
    if system := text_of(row, "system"):
        messages.append({"role": "system", "content": system})
    history = row.get("history")
    if history is not None and not isinstance(history, list):
        raise UserError("history is not a list of pairs")
    for pair in history or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError("history is not a list of pairs")
        messages += [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    messages.append({"role": "user", "content": query})
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    return messages


def _rejected(row: Row, prompt: list[Any]) -> str | None:
    if row.get("rejected_messages") is None:
        return answer(row, "rejected_response")
    rejected = row["rejected_messages"]
    if not isinstance(rejected, list) or rejected[:-1] != prompt:
        raise UserError("rejected_messages begins with other turns than messages")
    return answer(row, "rejected_messages")


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


FORMAT = Format(
    name="ms-swift",
    title="ms-swift",
    needs="messages, or query and response",
    detect=detect,
    read=read,
)
