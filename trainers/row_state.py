"""A row that waits for a later round, as JSON values: for methods with a buffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from trainers.batch import Row
from trainers.data.records import Turn


def row_state(row: Row) -> dict[str, Any]:
    """A row of a sampled response, without signals.

    Raises:
        ValueError: the row has what a buffer does not keep; names it.
    """
    if row.response_ids is None or row.turns or row.noise or row.greedy or row.tokens:
        raise ValueError(f"row {row.id}: only plain responses without signals are kept")
    return {
        "id": row.id,
        "prompt": [asdict(turn) for turn in row.prompt],
        "images": list(row.images),
        "response_ids": list(row.response_ids),
        "scalars": dict(row.scalars),
    }


def row_from(state: Mapping[str, Any]) -> Row:
    """The reverse of `row_state`."""
    return Row(
        id=state["id"],
        prompt=tuple(Turn(**turn) for turn in state["prompt"]),
        images=tuple(state["images"]),
        response_ids=tuple(state["response_ids"]),
        scalars=dict(state["scalars"]),
    )
