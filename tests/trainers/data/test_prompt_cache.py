"""Prompts that were tokenised before: what is kept, and what goes first."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.data.prompt_cache import Key, PromptCache
from trainers.data.records import Turn


def key(text: str) -> Key:
    return (Turn(role="user", text=text),), ("image",)


def test_the_prompt_that_was_not_asked_for_longest_goes_first():
    cache = PromptCache(most_tokens=5)
    cache.put(key("a"), np.arange(2))
    cache.put(key("b"), np.arange(3))
    assert cache.get(key("a")) is not None  # so that b is the older one
    cache.put(key("c"), np.arange(1))
    assert cache.get(key("b")) is None and cache.tokens == 3
    assert cache.get(key("a")).tolist() == [0, 1]


def test_a_prompt_that_is_too_long_is_not_kept():
    cache = PromptCache(most_tokens=5)
    cache.put(key("a"), np.arange(6))
    assert cache.get(key("a")) is None and cache.tokens == 0


def test_what_is_kept_cannot_be_changed():
    cache = PromptCache()
    cache.put(key("a"), np.arange(2))
    with pytest.raises(ValueError, match="read-only"):
        cache.get(key("a"))[0] = 7
