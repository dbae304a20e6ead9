"""Seconds by phase and spans of the timeline."""

from __future__ import annotations

import time

import pytest

from cluster.session import Clock


def test_phases_add_up_and_keep_their_order():
    clock = Clock()
    for name in ("generate", "train", "generate"):
        with clock.phase(name):
            time.sleep(0.01)
    assert [name for name, _, _ in clock.spans] == ["generate", "train", "generate"]
    seconds = clock.seconds()
    assert set(seconds) == {"generate", "train"}
    assert seconds["generate"] == pytest.approx(
        sum(end - start for name, start, end in clock.spans if name == "generate")
    )
    assert seconds["generate"] >= 0.02 and seconds["train"] >= 0.01
    for (_, start, end), (_, following, _) in zip(clock.spans, clock.spans[1:], strict=False):
        assert 0 <= start < end <= following


def test_a_phase_that_raises_is_still_counted():
    clock = Clock()
    with pytest.raises(KeyError), clock.phase("judge"):
        raise KeyError
    assert list(clock.seconds()) == ["judge"]
