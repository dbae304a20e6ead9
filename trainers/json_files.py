"""A run folder's JSON files, read as the pydantic models that they were written from."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from trainers.data.errors import UserError

M = TypeVar("M", bound=BaseModel)


def load_as(model: type[M], path: Path, remedy: str = "run the comparison again") -> M:
    """Read a run folder's JSON file as `model`; `UserError` names file and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a run folder's file") from error
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"{path}: {first_problem(error)}; the file is damaged or from another version, {remedy}"
        ) from error


def first_problem(error: ValidationError) -> str:
    """`key: what is wrong with it`, in one line whatever the file's keys hold."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "file"
    return " ".join(f"{key}: {first['msg'][:1].lower()}{first['msg'][1:]}".split())
