"""Engines as a group: parts, seeds, and results put together by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.answers import SegmentSettings
from actors.rollout import RolloutActor
from cluster.recipe import Call
from cluster.rollouts import (
    JOINED,
    added,
    contiguous,
    dealt,
    equal,
    joined,
    pairs_chained,
    part_seed,
    seeded,
)


def test_seven_in_three_parts():
    assert contiguous(list(range(7)), 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert contiguous([1], 3) == [[1], [], []]


@settings(deadline=None)
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
    assert joined("sleep", [3, 4]) == 7


def test_engines_at_different_versions_are_an_error():
    assert equal([4, 4]) == 4
    with pytest.raises(RuntimeError, match="engines are at versions 4, 5"):
        equal([4, 5])


def test_prompts_are_dealt_and_all_else_goes_to_every_engine():
    call = Call("generate", (["a", "b", "c"],), {"seed": 5, "prefix": "r1/"})
    assert dealt(call, 1) == [call]
    assert dealt(call, 2) == [
        Call("generate", (["a", "b"],), {"seed": 5, "prefix": "r1/"}),
        Call("generate", (["c"],), {"seed": part_seed(5, 1), "prefix": "r1/"}),
    ]
    sync = Call("update_weights", ("buckets", 3))
    assert dealt(sync, 2) == [sync, sync]


def test_answers_with_seeds_of_their_own_need_none_for_their_part():
    call = Call("generate", (["a", "b"],), {"seed": 5})
    assert [part.kwargs for part in dealt(call, 2, one_seed=True)] == [{"seed": 5}] * 2


def test_an_engine_without_a_prompt_is_not_asked():
    found = dealt(Call("generate", (["a"],), {"seed": 5}), 3)
    assert found == [Call("generate", (["a"],), {"seed": 5}), None, None]
    none = dealt(Call("generate", ([],), {"seed": 5}), 2)
    assert none == [Call("generate", ([],), {"seed": 5}), None]  # one has to give the empty answer


def test_whatever_an_engine_can_be_asked_can_be_asked_of_several():
    calls = {name for name in vars(RolloutActor) if not name.startswith("_")}
    of_each_by_itself = {"end_phase", "warm_up", "engine"}
    of_each_by_itself |= {"open_update", "receive", "close_update"}  # `cluster.direct_sync`
    assert calls - of_each_by_itself == JOINED.keys()
