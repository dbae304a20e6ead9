"""Axes: B rows, R response tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from trainers.advantages import explained_variance, gae, token_rewards, whiten


@st.composite
def batches(draw):
    """rewards, values, mask (with holes) and junk to stand at padding."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    rewards_BR, values_BR = torch.randn(2, rows, width, generator=generator)
    mask_BR = torch.rand(rows, width, generator=generator) < 0.7
    mask_BR[0, 0] = True
    return rewards_BR, values_BR, mask_BR


def slow_gae(rewards, values, gamma, lam):
    """The definition: A_t = sum_k (gamma * lam)^k * delta_{t+k}."""
    n = len(rewards)
    deltas = [
        rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)
    ]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]


def test_token_rewards_by_hand():
    # kl_coef 0.5; log-ratios 1 and -2, so -0.5 and +1; the score lands on the last valid token.
    rewards_BR = token_rewards(
        torch.tensor([3.0, 7.0]),
        torch.tensor([[-1.0, -3.0, 99.0], [-1.0, -1.0, -1.0]]),
        torch.tensor([[-2.0, -1.0, -99.0], [-1.0, -1.0, -1.0]]),
        torch.tensor([[1, 1, 0], [1, 1, 1]]),
        kl_coef=0.5,
        clamp=10.0,
    )
    assert rewards_BR.tolist() == [[-0.5, 1.0 + 3.0, 0.0], [0.0, 0.0, 7.0]]


def test_token_rewards_clamp_the_log_ratio_and_carry_no_gradient():
    old_BR = torch.tensor([[0.0, -1.0]], requires_grad=True)
    rewards_BR = token_rewards(
        torch.tensor([1.0]), old_BR, torch.tensor([[-50.0, -1.0]]), torch.ones(1, 2), 1.0, 10.0
    )
    assert rewards_BR.tolist() == [[-10.0, 1.0]]
    assert not rewards_BR.requires_grad


def test_a_score_needs_a_token_but_a_padding_row_does_not():
    zeros_BR = torch.zeros(2, 2)
    mask_BR = torch.tensor([[1, 0], [0, 0]])
    rewards_BR = token_rewards(torch.tensor([2.0, 0.0]), zeros_BR, zeros_BR, mask_BR, 0.1)
    assert rewards_BR.tolist() == [[2.0, 0.0], [0.0, 0.0]]
    with pytest.raises(ValueError, match="without tokens"):
        token_rewards(torch.tensor([2.0, 1.0]), zeros_BR, zeros_BR, mask_BR, 0.1)


@settings(max_examples=30, deadline=None)
@given(batches())
def test_policy_equal_to_reference_leaves_only_the_score(batch):
    logprobs_BR, _, mask_BR = batch
    score_B = torch.arange(1.0, len(mask_BR) + 1) * mask_BR.any(-1)
    rewards_BR = token_rewards(score_B, logprobs_BR, logprobs_BR, mask_BR, 0.3)
    assert_close(rewards_BR.sum(-1), score_B)
    assert int((rewards_BR != 0).sum()) == int(mask_BR.any(-1).sum())


def test_gae_by_hand():
    # gamma 1, lambda 0.5; r = 0, 0, 1; V = 0.5, 0.4, 0.2.
    # delta = 0.4 - 0.5, 0.2 - 0.4, 1 - 0.2 = -0.1, -0.2, 0.8
    # A_2 = 0.8, A_1 = -0.2 + 0.4 = 0.2, A_0 = -0.1 + 0.1 = 0.0; returns = A + V
    rewards_BR, values_BR = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.4, 0.2]])
    advantages_BR, returns_BR = gae(rewards_BR, values_BR, torch.ones(1, 3), 1.0, 0.5)
    assert_close(advantages_BR, torch.tensor([[0.0, 0.2, 0.8]]))
    assert_close(returns_BR, torch.tensor([[0.5, 0.6, 1.0]]))


@settings(max_examples=30, deadline=None)
@given(batches(), st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_the_definition_on_the_valid_tokens(batch, gamma, lam):
    rewards_BR, values_BR, mask_BR = batch
    junk_BR = torch.where(mask_BR, values_BR, 1e6)
    advantages_BR, returns_BR = gae(rewards_BR, junk_BR, mask_BR, gamma, lam)
    for row in range(len(mask_BR)):
        keep = mask_BR[row]
        expected = slow_gae(
            rewards_BR[row][keep].tolist(), values_BR[row][keep].tolist(), gamma, lam
        )
        assert_close(advantages_BR[row][keep], torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert_close(returns_BR[mask_BR], (advantages_BR + values_BR)[mask_BR])
    assert float(advantages_BR[~mask_BR].abs().sum() + returns_BR[~mask_BR].abs().sum()) == 0.0


@settings(max_examples=30, deadline=None)
@given(batches())
def test_gae_limits(batch):
    rewards_BR, values_BR, mask_BR = batch
    rewards_BR = rewards_BR * mask_BR
    _, returns_BR = gae(rewards_BR, values_BR, mask_BR, 1.0, 1.0)
    to_go_BR = rewards_BR.flip(-1).cumsum(-1).flip(-1)
    assert_close(returns_BR[mask_BR], to_go_BR[mask_BR], rtol=1e-4, atol=1e-5)
    advantages_BR, _ = gae(rewards_BR, values_BR, mask_BR, 0.0, 0.9)
    assert_close(advantages_BR[mask_BR], (rewards_BR - values_BR)[mask_BR])


@settings(max_examples=30, deadline=None)
@given(batches(), st.integers(1, 3))
def test_more_padding_and_another_row_order_change_nothing(batch, extra):
    rewards_BR, values_BR, mask_BR = batch
    pad = torch.nn.functional.pad
    plain = gae(rewards_BR, values_BR, mask_BR, 1.0, 0.95)
    padded = gae(
        pad(rewards_BR, (0, extra), value=7.0),
        pad(values_BR, (0, extra), value=math.nan),
        pad(mask_BR, (0, extra), value=False),
        1.0,
        0.95,
    )
    order = torch.arange(len(mask_BR)).flip(0)
    turned = gae(rewards_BR[order], values_BR[order], mask_BR[order], 1.0, 0.95)
    for one, two, three in zip(plain, padded, turned, strict=True):
        assert_close(two[:, :-extra], one)
        assert_close(three[order], one)
    white_BR = whiten(values_BR, mask_BR)
    padded_BR = whiten(
        pad(values_BR, (0, extra), value=math.nan), pad(mask_BR, (0, extra), value=False)
    )
    assert_close(padded_BR[:, :-extra], white_BR)


def test_whiten_by_hand():
    # valid 1, 2, 3, 6: mean 3, var (4 + 1 + 0 + 9) / 4 = 3.5
    values_BR = torch.tensor([[1.0, 2.0, 500.0], [3.0, 6.0, -500.0]])
    mask_BR = torch.tensor([[1, 1, 0], [1, 1, 0]])
    expected = (torch.tensor([[1.0, 2.0, 3.0], [3.0, 6.0, 3.0]]) - 3.0) / math.sqrt(3.5)
    assert_close(whiten(values_BR, mask_BR), expected)


def test_whiten_of_one_token_of_a_constant_and_of_nothing_is_zero():
    assert whiten(torch.tensor([[4.0, 9.0]]), torch.tensor([[1, 0]])).tolist() == [[0.0, 0.0]]
    assert whiten(torch.full((2, 2), 0.1), torch.ones(2, 2)).abs().max() < 1e-6
    assert whiten(torch.ones(1, 2), torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


def test_whitening_parts_is_not_whitening_the_whole():
    values_BR, mask_BR = torch.tensor([[0.0, 1.0], [10.0, 30.0]]), torch.ones(2, 2)
    parts_BR = torch.cat([whiten(values_BR[:1], mask_BR[:1]), whiten(values_BR[1:], mask_BR[1:])])
    assert (whiten(values_BR, mask_BR) - parts_BR).abs().max() > 0.3


def test_explained_variance():
    returns = torch.tensor([[1.0, 2.0, 3.0, 50.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(returns + 5.0, returns, mask) == 1.0  # a constant offset is free
    assert explained_variance(torch.full((1, 4), 2.0), returns, mask) == 0.0
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)  # Var(2r) = 4 Var(r)
    assert math.isnan(explained_variance(returns, torch.ones(1, 4), mask))
