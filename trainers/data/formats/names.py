"""The formats' names, for the settings and the command line; nothing is imported here."""

from __future__ import annotations

from typing import Literal, get_args

FormatName = Literal["auto", "trl", "rlaif-v", "mm-rlhf", "llava", "bpo", "vlfeedback", "ms-swift"]
FORMAT_NAMES: tuple[str, ...] = get_args(FormatName)
