"""One row of a data file in TRL's columns, as text: turns, answers, truth. No file is read here.

Every function raises `UserError` with a reason that does not name the row; `trainers.data.datasets`
adds file and row.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from trainers.data.errors import UserError
from trainers.data.records import Turn

IMAGE_PLACEHOLDER = "<image>"
MAX_LEVELS = 100
"""Of lists and objects in each other; msgpack packs no more than 511."""
ROLES = ("system", "user", "assistant")
Role = Literal["system", "user", "assistant"]
Row = Mapping[str, Any]


def prompt_turns(prompt: Any, num_images: int) -> tuple[Turn, ...]:
    """The turns of a prompt, plain string or conversational, with `num_images` images placed.

    Placeholders say in which turn the images stand. A prompt without any gets all of them in its
    first user turn, which is what TRL does. Limiting case: "Hi", 0 -> one user turn, no image.
    """
    if isinstance(prompt, str):
        turns = [_turn("user", prompt, "prompt")]
    elif isinstance(prompt, list) and prompt:
        turns = [_message(message, f"prompt turn {i}") for i, message in enumerate(prompt, 1)]
    else:
        raise UserError("prompt is empty" if not prompt else f"prompt is a {_kind(prompt)}")
    if turns[-1].role != "user":
        raise UserError(f"prompt ends with a turn of the {turns[-1].role}, not of the user")
    placed = sum(turn.num_images for turn in turns)
    if placed == 0 and num_images:
        first = next(i for i, turn in enumerate(turns) if turn.role == "user")
        turns[first] = replace(turns[first], num_images=num_images)
    elif placed != num_images:
        raise UserError(f"prompt has {placed} image placeholders for {num_images} images")
    return tuple(turns)


def answer(row: Row, column: str) -> str | None:
    """A `chosen`, `rejected` or `completion`: a string, or the last turn of a conversation."""
    value = row.get(column)
    if value is None:
        return None
    if isinstance(value, list) and value:
        turn = _message(value[-1], f"{column} last turn")
        if turn.role != "assistant":
            raise UserError(f"{column} ends with a turn of the {turn.role}, not of the assistant")
    elif isinstance(value, str):
        turn = _turn("assistant", value, column)
    else:
        raise UserError(f"{column} is empty" if not value else f"{column} is a {_kind(value)}")
    if turn.num_images:
        raise UserError(f"{column} holds an image placeholder; answers are text")
    return turn.text


def truth(row: Row) -> dict[str, Any] | None:
    """`truth` or `ground_truth` as a dict; a bare value becomes `{"answer": value}`."""
    value = row.get("truth")
    value = row.get("ground_truth") if value is None else value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        # A sentence may happen to start with a brace.
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if value is None:
        return None
    value = plain(value)
    return value if isinstance(value, dict) else {"answer": value}


def image_references(row: Row) -> list[str | bytes]:
    """The row's images in order: paths as written, or the bytes of the files."""
    value = row.get("images")
    value = row.get("image") if value is None or value == [] else value
    if value is None:
        return []
    return [_image_reference(item) for item in (value if isinstance(value, list) else [value])]


def _image_reference(item: Any) -> str | bytes:
    if isinstance(item, dict):
        item = item.get("path") if item.get("bytes") is None else item["bytes"]
    if isinstance(item, bytes):
        return item
    if not isinstance(item, str) or not item:
        raise UserError(f"an image is a {_kind(item)}; give a path, or bytes in parquet")
    return item


def _message(message: Any, where: str) -> Turn:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise UserError(f"{where} is not an object with role and content")
    role, content = message["role"], message["content"]
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if role not in ROLES:
        raise UserError(f"{where} has role {role!r}; use {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"{where} has content that is a {_kind(content)}")
    return _turn(cast("Role", role), content, where)


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    # HF data sets give every part every key, None where it does not apply.
    if kind == "image":
        if any(part.get(key) is not None for key in ("image", "url", "path", "base64")):
            raise UserError(f"{where} has an image inside its content; put it in `images`")
        return IMAGE_PLACEHOLDER
    raise UserError(f"{where} has a part of type {kind!r}; use text or image")


def _turn(role: Role, text: str, where: str) -> Turn:
    """Images move to the start of their turn, as LLaVA was trained; so none may stand inside."""
    count = text.count(IMAGE_PLACEHOLDER)
    body = text.strip()
    while body.startswith(IMAGE_PLACEHOLDER):
        body = body.removeprefix(IMAGE_PLACEHOLDER).strip()
    while body.endswith(IMAGE_PLACEHOLDER):
        body = body.removesuffix(IMAGE_PLACEHOLDER).strip()
    if IMAGE_PLACEHOLDER in body:
        raise UserError(f"{where} has an image placeholder inside its text; move it to the start")
    if not body:
        raise UserError(f"{where} is empty")
    if count and role != "user":
        raise UserError(f"{where} has an image placeholder in a turn of the {role}")
    return Turn(role=role, text=body, num_images=count)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def plain(value: Any, levels: int = MAX_LEVELS) -> Any:
    """Values that a record can hold: parquet also brings dates and decimals, kept as text."""
    if levels == 0:
        raise UserError(f"the row is nested more than {MAX_LEVELS} levels deep")
    if isinstance(value, dict):
        return {str(key): plain(item, levels - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, levels - 1) for item in value]
    if value is None or isinstance(value, str | bool | float | bytes):
        return value
    return value if isinstance(value, int) and -(2**63) <= value < 2**64 else str(value)
