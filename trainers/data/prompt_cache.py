"""Prompts that were tokenised before: a round's rows have the same few, in every copy and epoch."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from trainers.data.records import Turn

Key = tuple[tuple[Turn, ...], tuple[str, ...]]
"""Turns, and the content hashes of the images: together all that a prompt's tokens depend on."""


class PromptCache:
    """Token ids by prompt; those that were not asked for longest go first.

    Args:
        most_tokens: of all prompts together, at 8 bytes each.
    """

    def __init__(self, most_tokens: int = 2**20):
        self.most_tokens, self.tokens = most_tokens, 0
        self._ids: OrderedDict[Key, np.ndarray] = OrderedDict()

    def get(self, key: Key) -> np.ndarray | None:
        """The prompt's ids, int64, not to be written to; None if it is not here."""
        ids = self._ids.get(key)
        if ids is not None:
            self._ids.move_to_end(key)
        return ids

    def put(self, key: Key, ids: np.ndarray) -> None:
        """Keep a prompt that is not here."""
        ids.flags.writeable = False
        self._ids[key] = ids
        self.tokens += len(ids)
        while self.tokens > self.most_tokens:
            self.tokens -= len(self._ids.popitem(last=False)[1])
