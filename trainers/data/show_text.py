"""Text of a data file made safe to print: a terminal obeys control characters."""

from __future__ import annotations

import re

# Control characters but the line break; marks that change the direction of writing; surrogates.
HIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """`text` with its control characters written as their codes; line breaks stay."""
    return HIDDEN.sub(lambda match: _escape(ord(match[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
