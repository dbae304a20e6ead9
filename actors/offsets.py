"""Where in a response's text each sampled token ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for a character of which only some bytes are there yet."""


def token_ends(tokenizer: Any, token_ids: Sequence[int], text: str) -> tuple[int, ...]:
    """For every token, how many characters of `text` are there after it; special tokens add none.

    Tokens are decoded one by one, each after the one before it, since a token's text depends on its
    left neighbour (the space before a word). A character of several tokens ends with its last one.
    `text` is the decoded response without the white space around it; empty if the tokens do not
    spell it, so that no place is made up.

    Example: "a cat" from tokens "a", " cat", EOS gives (1, 5, 5).
    """
    ids = list(token_ids)
    ends: list[int] = []
    whole = ""
    prefix = read = 0
    for index in range(len(ids)):
        before = _decode(tokenizer, ids[prefix:read])
        now = _decode(tokenizer, ids[prefix : index + 1])
        if len(now) > len(before) and not now.endswith(UNFINISHED):
            whole += now[len(before) :]
            prefix, read = read, index + 1
        ends.append(len(whole))
    if whole.strip() != text:
        return ()
    lead = len(whole) - len(whole.lstrip())
    return tuple(min(max(end - lead, 0), len(text)) for end in ends)


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
