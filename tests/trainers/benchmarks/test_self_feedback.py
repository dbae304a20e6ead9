"""RLAIF-V's length-normalised implicit reward, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.benchmarks.self_feedback import best, implicit_reward

LOGPROBS = st.lists(st.floats(-20, 0), min_size=1, max_size=12)


def test_by_hand():
    # (-1 - -2) + (-0.5 - -1) = 1.5 over 2 tokens, times 0.1
    assert implicit_reward([-1.0, -0.5], [-2.0, -1.0]) == pytest.approx(0.075)


@given(LOGPROBS)
def test_zero_where_policy_and_reference_agree(logprobs):
    assert implicit_reward(logprobs, logprobs) == 0.0


@given(LOGPROBS, st.integers(2, 4))
def test_saying_it_again_changes_nothing(logprobs, times):
    """The mean over tokens: a longer answer of the same quality has the same reward."""
    reference = [value - 0.5 for value in logprobs]
    once = implicit_reward(logprobs, reference)
    assert implicit_reward(logprobs * times, reference * times) == pytest.approx(once)


def test_the_best_is_the_first_of_equals():
    assert best([0.0, 2.0, 2.0, 1.0]) == 1
    assert best([0.0]) == 0


@pytest.mark.parametrize("pair", [([], []), ([-1.0], []), ([-1.0], [float("-inf")])])
def test_no_reward_instead_of_a_wrong_one(pair):
    with pytest.raises(ValueError):
        implicit_reward(*pair)
