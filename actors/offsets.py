"""A response's text from its tokens, and where in it each token ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for a character of which only some bytes are there yet."""
Known = dict[tuple[int, ...], str]
"""Texts of pieces that were decoded before: most of a call's pieces come again and again."""


def spell(
    tokenizer: Any, token_ids: Sequence[int], known: Known | None = None
) -> tuple[str, tuple[int, ...]]:
    """The text without the white space around it and, for every token, how many characters of it
    are there after the token; special tokens add none.

    Tokens are decoded one by one, each after the one before it, since a token's text depends on its
    left neighbour (the space before a word); an engine that streams does the same. A character of
    several tokens ends with its last one, and one that is cut off at the end is left out.

    Example: "a cat" from tokens "a", " cat", EOS gives ("a cat", (1, 5, 5)).
    """
    known = {} if known is None else known
    ids = tuple(token_ids)
    ends: list[int] = []
    whole = ""
    prefix = read = 0
    for index in range(len(ids)):
        before = _decode(tokenizer, ids[prefix:read], known)
        now = _decode(tokenizer, ids[prefix : index + 1], known)
        if len(now) > len(before) and not now.endswith(UNFINISHED):
            whole += now[len(before) :]
            prefix, read = read, index + 1
        ends.append(len(whole))
    text = whole.strip()
    lead = len(whole) - len(whole.lstrip())
    return text, tuple(min(max(end - lead, 0), len(text)) for end in ends)


def _decode(tokenizer: Any, ids: tuple[int, ...], known: Known) -> str:
    text = known.get(ids)
    if text is None:
        text = known[ids] = str(
            tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
    return text
