"""SimPO and RPO by hand; IPO as a kind of DPO. Axes: P pairs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from trainers.losses import dpo_loss, metric_means
from trainers.preference_losses import rpo_loss, simpo_loss

fast = settings(max_examples=25, deadline=None)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_simpo_by_hand():
    # 2 * (-1 - -2) - 0.5 = 1.5 and 2 * (-3 - -1) - 0.5 = -4.5, over 4 pairs of the step
    chosen = torch.tensor([-1.0, -3.0], requires_grad=True)
    loss, metrics = simpo_loss(
        chosen, torch.tensor([-2.0, -1.0]), beta=2.0, gamma=0.5, normalizer=4
    )
    assert loss.item() == pytest.approx(-(log_sigmoid(1.5) + log_sigmoid(-4.5)) / 4)
    means = metric_means(metrics)
    assert means["rewards/margins"] == pytest.approx((2.0 - 4.0) / 2)
    assert means["rewards/accuracies"] == 0.5
    loss.backward()
    # -beta * sigmoid(gamma - margin) / n
    assert chosen.grad[0].item() == pytest.approx(-2 / (1 + math.exp(1.5)) / 4)


def test_simpo_at_equal_means_without_a_margin_is_ln_2():
    same = torch.tensor([-1.7])
    loss, _ = simpo_loss(same, same, beta=3.0, gamma=0.0, normalizer=1)
    assert loss.item() == pytest.approx(math.log(2))


def test_ipo_by_hand():
    # h = 2 and -1, target 1 / (2 * 0.25) = 2: 0 and 9; with smoothing 0.1 also of -h: 16 and 1
    arguments = (torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.0]))
    refs = (torch.tensor([-2.0, -3.0]), torch.tensor([-1.0, -2.0]))
    plain, _ = dpo_loss(*arguments, *refs, beta=0.25, kind="ipo", normalizer=2)
    assert plain.item() == pytest.approx((0 + 9) / 2)
    smooth, _ = dpo_loss(
        *arguments, *refs, beta=0.25, kind="ipo", label_smoothing=0.1, normalizer=2
    )
    assert smooth.item() == pytest.approx((0.9 * (0 + 9) + 0.1 * (16 + 1)) / 2)


def test_ipo_at_the_reference_and_at_its_target():
    zero = torch.zeros(1, requires_grad=True)
    loss, _ = dpo_loss(zero, zero, zero, zero, beta=0.5, kind="ipo", normalizer=1)
    assert loss.item() == pytest.approx(1 / (4 * 0.25))
    chosen = torch.ones(1, requires_grad=True)  # h = 1 = 1 / (2 * 0.5)
    loss, _ = dpo_loss(
        chosen, torch.zeros(1), torch.zeros(1), torch.zeros(1), beta=0.5, kind="ipo", normalizer=1
    )
    loss.backward()
    assert loss.item() == 0.0 and chosen.grad.item() == 0.0


def test_rpo_by_hand():
    # log-ratios of the chosen 1 and 0, of the rejected 0 and 2; refs are 0
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    zero = torch.zeros(2)
    weights = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
    loss, metrics = rpo_loss(chosen, rejected, zero, zero, weights, beta=2.0, normalizer=8)
    terms = [2 * 0.7 * (1 - 0), 2 * 0.3 * (1 - 2), 2 * 0.4 * (0 - 0), 2 * 0.6 * (0 - 2)]
    assert loss.item() == pytest.approx(-sum(map(log_sigmoid, terms)) / 8)
    assert metrics["loss/rpo"] == (pytest.approx(-sum(map(log_sigmoid, terms))), 4.0)
    assert metrics["rewards/margins"] == (pytest.approx(2 * (1 - 0) + 2 * (0 - 2)), 2.0)


@fast
@given(st.integers(0, 999))
def test_rpo_with_the_identity_as_weights_is_dpo(seed):
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    values.requires_grad_()
    dpo, _ = dpo_loss(*values, beta=0.3, normalizer=5)
    rpo, _ = rpo_loss(*values, torch.eye(3), beta=0.3, normalizer=5)
    assert_close(rpo, dpo)
    (expected,) = torch.autograd.grad(dpo, values)
    (found,) = torch.autograd.grad(rpo, values)
    assert_close(found, expected)
    assert found[2:].abs().sum() == 0  # nothing flows to the reference
