import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from trainers.kl import AdaptiveKL, FixedKL, kl_estimate


def test_estimates_by_hand():
    # d = ln 2: k1 = ln 2, k2 = ln(2)^2 / 2, k3 = 1/2 - 1 + ln 2.
    new, ref = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert kl_estimate(new, ref, "k1").item() == pytest.approx(math.log(2))
    assert kl_estimate(new, ref, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_estimate(new, ref, "k3").item() == pytest.approx(math.log(2) - 0.5)


@settings(max_examples=30, deadline=None)
@given(st.floats(-5, 5))
def test_signs_and_limits(d):
    new, ref = torch.tensor([d]), torch.tensor([0.0])
    assert kl_estimate(ref, ref, "k3").item() == 0.0
    assert kl_estimate(new, ref, "k1").item() == pytest.approx(-kl_estimate(ref, new, "k1").item())
    assert kl_estimate(new, ref, "k2").item() >= 0
    assert kl_estimate(new, ref, "k3").item() >= -1e-6


def test_all_three_agree_near_zero_to_second_order():
    new, ref = torch.tensor([1e-2]), torch.tensor([0.0])
    k2 = kl_estimate(new, ref, "k2")
    assert_close(kl_estimate(new, ref, "k3"), k2, rtol=1e-2, atol=0.0)
    assert_close(0.5 * kl_estimate(new, ref, "k1") ** 2, k2)


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    # Exact expectations over three outcomes instead of samples.
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = (p * (p / q).log()).sum()
    for kind in ("k1", "k3"):
        assert_close((p * kl_estimate(p.log(), q.log(), kind)).sum(), exact)
    assert abs((p * kl_estimate(p.log(), q.log(), "k2")).sum() - exact) > 0.005


def test_gradient_of_expected_k2_is_the_gradient_of_the_kl():
    theta = torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
    q = torch.tensor([0.3, 0.3, 0.4])
    p = theta.softmax(0)
    exact = torch.autograd.grad((p * (p / q).log()).sum(), theta)[0]
    logprobs = theta.log_softmax(0)
    loss = (p.detach() * kl_estimate(logprobs, q.log(), "k2")).sum()
    assert_close(torch.autograd.grad(loss, theta)[0], exact)


def test_clamp_bounds_the_log_ratio():
    new, ref = torch.tensor([0.0, -100.0]), torch.tensor([-100.0, 0.0])
    assert kl_estimate(new, ref, "k1").tolist() == [10.0, -10.0]
    assert kl_estimate(new, ref, "k1", clamp=3.0).tolist() == [3.0, -3.0]
    assert torch.isfinite(kl_estimate(new, ref, "k3")).all()


def test_adaptive_coefficient_by_hand():
    controller = AdaptiveKL(coef=0.1, target=2.0, horizon=1000)
    assert controller.update(2.0, 1000) == 0.1  # on target
    # error = 2.2 / 2 - 1 = 0.1; 1 + 0.1 * 500 / 1000 = 1.05
    assert controller.update(2.2, 500) == pytest.approx(0.105)
    # error clipped to 0.2, then to -0.2
    assert controller.update(50.0, 1000) == pytest.approx(0.105 * 1.2)
    assert controller.update(-50.0, 1000) == pytest.approx(0.105 * 1.2 * 0.8)
    assert controller.coef == pytest.approx(0.105 * 1.2 * 0.8)


def test_controllers_refuse_nonsense_and_fixed_stays():
    with pytest.raises(ValueError, match="above 0"):
        AdaptiveKL(coef=0.1, target=0.0, horizon=10)
    with pytest.raises(ValueError, match="nan"):
        AdaptiveKL(coef=0.1, target=1.0, horizon=10).update(math.nan, 1)
    assert FixedKL(coef=0.3).update(99.0, 5) == 0.3
