"""Where relative paths of what a run writes begin."""

from __future__ import annotations

import os
from pathlib import Path

RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the command of a submitted job."""


def home() -> Path:
    """`QUARTET_HOME`; else the working directory, and in a Ray job `~/quartet`.

    A job works in a copy of the uploaded folder, which Ray removes when it needs the room: results
    and built-in models must not be there.
    """
    if named := os.environ.get("QUARTET_HOME"):
        return Path(named).expanduser()
    return Path.home() / "quartet" if RAY_JOB in os.environ else Path()
