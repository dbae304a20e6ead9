"""Engines as a group: parts, seeds, and results put together by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.answers import SegmentSettings
from cluster.recipe import Call
from cluster.rollouts import (
    JOINED,
    added,
    contiguous,
    dealt,
    equal,
    pairs_chained,
    part_seed,
    seeded,
)


def test_seven_in_three_parts():
    assert contiguous(list(range(7)), 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert contiguous([1], 3) == [[1], [], []]


@given(st.lists(st.integers()), st.integers(1, 9))
def test_parts_are_the_whole_in_order(items, number):
    parts = contiguous(items, number)
    assert [item for part in parts for item in part] == items and len(parts) == number
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_first_part_has_the_seed_of_the_call_and_the_others_have_their_own():
    seeds = [part_seed(1003, number) for number in range(8)]
    assert seeds[0] == 1003 and len(set(seeds)) == 8
    assert seeds == [part_seed(1003, number) for number in range(8)]
    assert seeded({"seed": 5, "prefix": "a"}, 0) == {"seed": 5, "prefix": "a"}
    assert seeded({"seed": 5}, 1) == {"seed": part_seed(5, 1)}
    settings, prefix = seeded((SegmentSettings(seed=5, top_k=3), "a"), 1)
    assert settings == SegmentSettings(seed=part_seed(5, 1), top_k=3) and prefix == "a"


def test_results_become_one():
    assert pairs_chained([(["a", "b"], ["x"]), (["c"], [])]) == (["a", "b", "c"], ["x"])
    assert added([{"weights": 2, "kv_cache": 1}, {"weights": 3}]) == {"weights": 5, "kv_cache": 1}
    assert JOINED["sleep"]([3, 4]) == 7


def test_engines_at_different_versions_are_an_error():
    assert equal([4, 4]) == 4
    with pytest.raises(RuntimeError, match="engines are at versions 4, 5"):
        equal([4, 5])


def test_every_engine_gets_what_is_not_dealt_and_its_part_of_what_is():
    load = Call("load", ("spec",))
    assert dealt(load, 2) == [load, load]
    generate = Call("generate", (["a", "b", "c"],), {"seed": 5})
    assert dealt(generate, 1) == [generate]
    assert dealt(generate, 2) == [
        Call("generate", (["a", "b"],), {"seed": 5}),
        Call("generate", (["c"],), {"seed": part_seed(5, 1)}),
    ]
    assert dealt(generate, 2, one_seed=True)[1] == Call("generate", (["c"],), {"seed": 5})
    assert [call is None for call in dealt(generate, 4)] == [False, False, False, True]
    assert dealt(Call("generate", ([],)), 2) == [Call("generate", ([],)), None]
