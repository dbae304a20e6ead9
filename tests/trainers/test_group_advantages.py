"""Advantages relative to a prompt's group, by hand. Axes: B responses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from trainers.advantages import group_relative, leave_one_out

fast = settings(max_examples=30, deadline=None)
score_lists = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=12)


def test_group_relative_by_hand():
    # Group 0: 1, 2, 6 has mean 3 and variance (4 + 1 + 9) / 3; group 1: -1, 1 has mean 0, std 1.
    scores = torch.tensor([1.0, -1.0, 2.0, 1.0, 6.0])
    groups = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    std = (14 / 3) ** 0.5
    advantages, flat = group_relative(scores, groups)
    assert_close(advantages, torch.tensor([-2 / std, -1.0, -1 / std, 1.0, 3 / std]))
    assert flat == 0


def test_leave_one_out_by_hand():
    # Group 0: the others' means are (2 + 6) / 2, (1 + 6) / 2, (1 + 2) / 2; group 1: each other.
    scores = torch.tensor([1.0, -1.0, 2.0, 1.0, 6.0])
    groups = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    advantages, flat = leave_one_out(scores, groups)
    assert_close(advantages, torch.tensor([1 - 4.0, -2.0, 2 - 3.5, 2.0, 6 - 1.5]))
    assert flat == 0


@pytest.mark.parametrize("advantage", [group_relative, leave_one_out])
def test_equal_scores_and_single_responses_give_nothing_and_are_counted(advantage):
    # 0.1 three times: a mean in floating point need not be 0.1, and must not make noise.
    scores = torch.tensor([0.1, 0.1, 0.1, 7.0, 3.0, 4.0])
    groups = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 2.0])
    advantages, flat = advantage(scores, groups)
    assert advantages[:4].tolist() == [0.0] * 4
    assert flat == 2
    assert advantages[4] < 0 < advantages[5]


@fast
@given(score_lists, st.floats(-3, 3), st.floats(0.5, 4))
def test_shift_changes_neither_and_scale_only_leave_one_out(scores, shift, scale):
    score_B = torch.tensor(scores, dtype=torch.float64)
    group_B = torch.arange(len(scores)) % 2
    for advantage in (group_relative, leave_one_out):
        plain, _ = advantage(score_B, group_B)
        shifted, _ = advantage(score_B + shift, group_B)
        assert_close(plain, shifted, atol=1e-2, rtol=1e-3)
        for group in group_B.unique():
            assert float(plain[group_B == group].sum()) == pytest.approx(0.0, abs=1e-6)
    scaled, _ = leave_one_out(score_B * scale, group_B)
    assert_close(scaled, scale * leave_one_out(score_B, group_B)[0])


@fast
@given(score_lists)
def test_leave_one_out_is_the_centred_score_stretched(scores):
    score_B = torch.tensor(scores, dtype=torch.float64)
    advantages, _ = leave_one_out(score_B, torch.zeros(len(scores)))
    number = len(scores)
    stretch = number / (number - 1) if number > 1 else 0.0
    assert_close(advantages, stretch * (score_B - score_B.mean()))
