"""Judges as a user writes them; the judge's process imports them by name."""

from __future__ import annotations

import hashlib
from typing import Any


def length(*, response: str, **rest: Any) -> float:
    return float(len(response))


def often_raises(*, response: str, **rest: Any) -> float:
    """Raises on about half of all responses."""
    if hashlib.sha256(response.encode()).digest()[0] % 2:
        raise LookupError("no such color")
    return 1.0


def few_letters(*, response: str, **rest: Any) -> float:
    """A rating that MMHal-Bench takes: 0 to 6."""
    return float(min(6, len(response) % 7))
