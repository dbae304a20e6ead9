"""Bytes that something has happened to, for tests of what reads them."""

from __future__ import annotations

import random
from collections.abc import Sequence


def damaged(data: bytes, chance: random.Random, parts: Sequence[bytes]) -> bytes:
    """`data` with one to six bits, bytes or spans changed; some get one of `parts` instead."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(content)) if content else 0
        action = chance.randrange(4)
        if action == 0 and content:
            content[at] ^= 1 << chance.randrange(8)
        elif action == 1:
            content[at:at] = chance.randbytes(chance.randint(1, 8))
        elif action == 2:
            del content[at : at + chance.randint(1, 40)]
        else:
            content[at : at + 4] = chance.choice(parts)
    return bytes(content)
