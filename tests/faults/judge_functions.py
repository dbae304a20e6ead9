"""Judges that misbehave; the judge's process imports them by name."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def good(*, response: str, **rest: Any) -> float:
    """Some order among answers, slow enough that a round can be interrupted."""
    time.sleep(0.02)
    return _byte(response) / 255


def _byte(response: str) -> int:
    return hashlib.sha256(response.encode()).digest()[0]


def hangs(**rest: Any) -> float:
    time.sleep(10_000)
    return 0.0


def spins(**rest: Any) -> float:
    while True:
        pass


def often_raises(*, response: str, **rest: Any) -> float:
    if _byte(response) % 4 == 0:
        raise LookupError("no such color")
    return _byte(response) / 255


def raises(**rest: Any) -> float:
    raise LookupError("no such color")


def often_nan(*, response: str, **rest: Any) -> float:
    return math.nan if _byte(response) % 4 == 0 else _byte(response) / 255


def returns_nan(**rest: Any) -> float:
    return math.nan


def returns_infinity(**rest: Any) -> float:
    return math.inf


def returns_text(**rest: Any) -> Any:
    return "very good"


def returns_nothing(**rest: Any) -> None:
    return None


def exits(**rest: Any) -> float:
    sys.exit(3)


def always_dies(**rest: Any) -> float:
    os._exit(3)


def dies_once(*, response: str, **rest: Any) -> float:
    if _first("dies"):
        os._exit(3)
    return _byte(response) / 255


def crashes_once(*, response: str, **rest: Any) -> float:
    if _first("crashes"):
        ctypes.string_at(0)  # a segmentation fault
    return _byte(response) / 255


def _first(name: str) -> bool:
    """Whether this is the first call on this machine since the marker was removed."""
    try:
        marker(name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def marker(name: str) -> Path:
    """Left by the first call."""
    return Path(tempfile.gettempdir()) / f"quartet-test-judge-{name}"
