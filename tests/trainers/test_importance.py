"""Truncated importance weights by hand, and what they do to PPO's loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.batch import Row
from trainers.data.records import Turn
from trainers.importance import attach_importance, truncated_weights
from trainers.losses import ppo_policy_loss

LOGPROBS = st.lists(st.floats(-30, 0), min_size=1, max_size=6)


def test_weights_by_hand():
    # Twice as likely now, half as likely, four times: cut at 2.
    old = np.log([0.5, 0.1, 0.8])
    rollout = np.log([0.25, 0.2, 0.2])
    np.testing.assert_allclose(truncated_weights(old, rollout, 2.0), [2.0, 0.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(truncated_weights(old, rollout, math.inf), [2, 0.5, 4], rtol=1e-6)


@settings(deadline=None)
@given(LOGPROBS, st.floats(1.0, 10.0))
def test_on_policy_and_without_a_cap_the_weights_are_exactly_one(logprobs, cap):
    values = np.array(logprobs)
    for limit in (cap, math.inf):
        assert (truncated_weights(values, values, limit) == 1.0).all()


def test_without_a_cap_the_mean_over_rollouts_is_that_of_the_new_policy():
    """Importance sampling over all outcomes: sum_a p_roll w f = sum_a p_old f, to rounding."""
    rollout, old = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    value = np.array([1.0, -2.0, 5.0])
    weights = truncated_weights(np.log(old), np.log(rollout), math.inf)
    assert (rollout * weights * value).sum() == pytest.approx((old * value).sum(), rel=1e-6)


def test_a_wild_ratio_stays_finite():
    assert np.isfinite(truncated_weights(np.array([0.0]), np.array([-1e4]), math.inf)).all()


def row(id: str, **tokens: list[float]) -> Row:
    values = {name: np.array(each, dtype=np.float32) for name, each in tokens.items()}
    turn = Turn(role="user", text="?", num_images=0)
    return Row(id=id, prompt=(turn,), images=(), response_ids=(1, 2), tokens=values)


def test_rows_get_the_weights_of_their_own_rollouts(make_scored):
    from dataclasses import replace

    judged = []
    for id, logprobs in (("a", (-1.0, -2.0)), ("b", (-3.0, -1.0))):
        item = make_scored(id, "sample", 1.0)
        rollout = replace(item.rollout, token_ids=(1, 2), logprobs=logprobs, token_ends=())
        judged.append(replace(item, rollout=rollout))
    b, a = row("b", old_logprobs=[-3.0, -2.0]), row("a", old_logprobs=[-1.0, 0.0])
    metrics = attach_importance([b, a], judged, 2.0)
    np.testing.assert_allclose(a.tokens["importance"], [1.0, 2.0])
    np.testing.assert_allclose(b.tokens["importance"], [1.0, math.exp(-1)], rtol=1e-6)
    assert metrics["importance/truncated"] == 0.25 and metrics["importance/max"] == 2.0
    assert metrics["importance/mean"] == pytest.approx((1 + 2 + 1 + math.exp(-1)) / 4)
    plain = row("a")
    assert attach_importance([plain], judged, 2.0) == {} and not plain.tokens


def losses(weights: list[float] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of two tokens and a padded one, and its gradient."""
    logprobs = torch.tensor([[-1.0, -2.0, float("nan")]], requires_grad=True)
    loss, _ = ppo_policy_loss(
        logprobs,
        torch.tensor([[-1.0, -2.0, 0.0]]),
        torch.tensor([[3.0, -5.0, 0.0]]),
        torch.tensor([[True, True, False]]),
        clip_range_low=0.2,
        clip_range_high=0.2,
        normalizer=2.0,
        weights_BR=None if weights is None else torch.tensor([[*weights, float("nan")]]),
    )
    loss.backward()
    assert logprobs.grad is not None
    return loss.detach(), logprobs.grad


def test_the_loss_is_weighted_token_by_token():
    # At ratio 1: (-3 * 0.5 + 5 * 2) / 2 = 4.25; gradients -3 * 0.5 / 2 and 5 * 2 / 2.
    loss, grad = losses([0.5, 2.0])
    assert float(loss) == pytest.approx(4.25)
    torch.testing.assert_close(grad, torch.tensor([[-0.75, 5.0, 0.0]]))


def test_weights_of_one_are_the_loss_without_weights_to_the_bit():
    (loss, grad), (plain, plain_grad) = losses([1.0, 1.0]), losses(None)
    assert torch.equal(loss, plain) and torch.equal(grad, plain_grad)
