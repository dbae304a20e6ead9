"""Axes: B rows, R response tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from trainers.losses import (
    add_metrics,
    dpo_loss,
    dynamic_beta,
    metric_means,
    ppo_policy_loss,
    sft_loss,
    value_loss,
)

seeds = st.integers(0, 999)
fast = settings(max_examples=25, deadline=None)


def draw(rows: int, width: int, seed: int):
    """Random logprobs, old logprobs, advantages and a mask of right-padded rows."""
    generator = torch.Generator().manual_seed(seed)
    logprobs_BR, old_BR, advantages_BR = torch.randn(3, rows, width, generator=generator)
    lengths_B = torch.randint(1, width + 1, (rows,), generator=generator)
    mask_BR = torch.arange(width)[None] < lengths_B[:, None]
    return logprobs_BR, logprobs_BR + 0.3 * old_BR, advantages_BR, mask_BR


def every_token_loss(logprobs_BR, old_BR, advantages_BR, mask_BR, normalizer):
    """All losses over tokens, on the same inputs, as (loss, metrics)."""
    clip = {"clip_range_low": 0.2, "clip_range_high": 0.3}
    return {
        "ppo": ppo_policy_loss(
            logprobs_BR, old_BR, advantages_BR, mask_BR, **clip, normalizer=normalizer
        ),
        "value": value_loss(
            logprobs_BR, old_BR, advantages_BR, mask_BR, value_clip_range=0.2, normalizer=normalizer
        ),
        "sft": sft_loss(logprobs_BR, mask_BR, torch.ones(len(mask_BR)), normalizer=normalizer),
    }


def test_ppo_by_hand():
    # ratio = 1.5, 1.5, 0.5, 0.5 and A = 1, -1, 1, -1; clip to [0.8, 1.3].
    # max(-A r, -A clip(r)): -1.3 (clipped), 1.5, -0.5, 0.8 (clipped); sum 0.5, over 4 tokens.
    ratio_BR = torch.tensor([[1.5, 1.5, 0.5, 0.5, 9.0]])
    mask_BR = torch.tensor([[1, 1, 1, 1, 0]])
    loss, metrics = ppo_policy_loss(
        ratio_BR.log(),
        torch.zeros(1, 5),
        torch.tensor([[1.0, -1.0, 1.0, -1.0, 5.0]]),
        mask_BR,
        clip_range_low=0.2,
        clip_range_high=0.3,
        normalizer=4,
    )
    assert loss.item() == pytest.approx(0.125)
    means = metric_means(metrics)
    assert metrics["policy/clipfrac"] == (2.0, 4.0)
    assert means["policy/ratio"] == pytest.approx(1.0)
    assert means["loss/policy"] == pytest.approx(0.125)
    k3 = (2 * (0.5 - math.log(1.5)) + 2 * (-0.5 - math.log(0.5))) / 4
    assert means["policy/approx_kl"] == pytest.approx(k3, abs=1e-6)


@fast
@given(seeds)
def test_ppo_at_ratio_one_is_the_policy_gradient(seed):
    logprobs_BR, _, advantages_BR, mask_BR = draw(3, 4, seed)
    logprobs_BR.requires_grad_()
    loss, metrics = ppo_policy_loss(
        logprobs_BR,
        logprobs_BR.detach(),
        advantages_BR,
        mask_BR,
        clip_range_low=0.2,
        clip_range_high=0.2,
        normalizer=7,
    )
    (grad_BR,) = torch.autograd.grad(loss, logprobs_BR)
    assert_close(grad_BR, -advantages_BR * mask_BR / 7)
    means = metric_means(metrics)
    assert means["policy/ratio"] == pytest.approx(1.0)
    assert means["policy/clipfrac"] == 0.0
    assert means["policy/approx_kl"] == 0.0


def test_ppo_has_no_gradient_where_the_clip_decides_and_none_to_old_logprobs():
    logprobs_BR = torch.tensor([[0.5, -0.5]], requires_grad=True)
    old_BR = torch.zeros(1, 2, requires_grad=True)
    loss, _ = ppo_policy_loss(
        logprobs_BR,
        old_BR,
        torch.tensor([[1.0, -1.0]]),
        torch.ones(1, 2),
        clip_range_low=0.2,
        clip_range_high=0.2,
        normalizer=2,
    )
    loss.backward()
    assert_close(logprobs_BR.grad, torch.zeros(1, 2))
    assert old_BR.grad is None


def test_ppo_stays_finite_for_a_wild_ratio():
    loss, _ = ppo_policy_loss(
        torch.tensor([[0.0]]),
        torch.tensor([[-1e4]]),
        torch.tensor([[-1.0]]),
        torch.ones(1, 1),
        clip_range_low=0.2,
        clip_range_high=0.2,
        normalizer=1,
    )
    assert torch.isfinite(loss)


def test_value_loss_by_hand():
    # V = 1.0, V_old = 0.0, clip 0.2 -> V_clip = 0.2.
    # return 0.9: (0.1)^2 against (0.7)^2, clipped decides, 0.245; return -1: 4 against 1.44, 2.0.
    loss, metrics = value_loss(
        torch.tensor([[1.0, 1.0, 1.0]]),
        torch.tensor([[0.0, 0.0, 0.0]]),
        torch.tensor([[0.9, -1.0, 77.0]]),
        torch.tensor([[1, 1, 0]]),
        value_clip_range=0.2,
        normalizer=2,
    )
    assert loss.item() == pytest.approx((0.245 + 2.0) / 2)
    assert metrics["value/clipfrac"] == (1.0, 2.0)
    assert metrics["value/mean"] == (2.0, 2.0)


@fast
@given(seeds)
def test_value_loss_without_clipping_is_half_the_squared_error(seed):
    values_BR, old_BR, returns_BR, mask_BR = draw(2, 4, seed)
    expected = 0.5 * ((values_BR - returns_BR).square() * mask_BR).sum() / 3
    for old, clip in ((old_BR, math.inf), (values_BR, 0.2)):
        loss, _ = value_loss(
            values_BR, old, returns_BR, mask_BR, value_clip_range=clip, normalizer=3
        )
        assert_close(loss, expected)


def dpo(chosen, rejected, ref_chosen, ref_rejected, **options):
    tensors = [torch.as_tensor(x) for x in (chosen, rejected, ref_chosen, ref_rejected)]
    return dpo_loss(*tensors, **{"beta": 0.1, "normalizer": len(tensors[0])} | options)


def test_dpo_by_hand():
    # h = (-10 + 12) - (-20 + 15) = 2 + 5 = 7; beta h = 0.7
    loss, metrics = dpo([-10.0], [-20.0], [-12.0], [-15.0])
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.7)))
    means = metric_means(metrics)
    assert means["rewards/chosen"] == pytest.approx(0.2)
    assert means["rewards/rejected"] == pytest.approx(-0.5)
    assert means["rewards/margins"] == pytest.approx(0.7)
    assert means["rewards/accuracies"] == 1.0
    assert (means["logps/chosen"], means["logps/rejected"]) == (-10.0, -20.0)
    # s = 0.1: 0.9 * softplus(-0.7) + 0.1 * softplus(0.7)
    smooth, _ = dpo([-10.0], [-20.0], [-12.0], [-15.0], label_smoothing=0.1)
    expected = 0.9 * math.log(1 + math.exp(-0.7)) + 0.1 * math.log(1 + math.exp(0.7))
    assert smooth.item() == pytest.approx(expected)


@pytest.mark.parametrize("beta", [0.1, 0.5, torch.tensor([0.1, 0.3])])
def test_dpo_of_the_reference_itself_is_ln_2(beta):
    loss, metrics = dpo([-3.0, -9.0], [-4.0, -1.0], [-3.0, -9.0], [-4.0, -1.0], beta=beta)
    assert loss.item() == pytest.approx(math.log(2))
    assert metric_means(metrics)["rewards/margins"] == 0.0


def test_dpo_label_smoothing_zero_does_not_flip_labels():
    good, _ = dpo([-1.0], [-9.0], [-5.0], [-5.0])
    bad, _ = dpo([-9.0], [-1.0], [-5.0], [-5.0])
    assert good < math.log(2) < bad


@fast
@given(seeds)
def test_dpo_gradient_is_a_scaled_difference_of_two_sft_gradients(seed):
    # grad L = beta * sigmoid(-beta * h) * (grad NLL(chosen) - grad NLL(rejected))
    torch.manual_seed(seed)
    theta = torch.randn(6, requires_grad=True)
    chosen, rejected = torch.randint(0, 6, (2, 4))
    logprobs = theta.log_softmax(0)
    nll_chosen, nll_rejected = -logprobs[chosen].sum(), -logprobs[rejected].sum()
    ref_chosen, ref_rejected = torch.randn(2) - 5
    loss, _ = dpo_loss(
        -nll_chosen[None],
        -nll_rejected[None],
        ref_chosen[None],
        ref_rejected[None],
        beta=0.3,
        normalizer=1,
    )
    (grad,) = torch.autograd.grad(loss, theta, retain_graph=True)
    (grad_chosen,) = torch.autograd.grad(nll_chosen, theta, retain_graph=True)
    (grad_rejected,) = torch.autograd.grad(nll_rejected, theta)
    h = (-nll_chosen - ref_chosen + nll_rejected + ref_rejected).detach()
    assert_close(grad, 0.3 * torch.sigmoid(-0.3 * h) * (grad_chosen - grad_rejected))


def test_dpo_beta_per_pair_is_each_pair_alone():
    columns = ([-1.0, -2.0], [-3.0, -1.0], [-2.0, -2.0], [-2.0, -2.0])
    both, _ = dpo(*columns, beta=torch.tensor([0.1, 0.4]), normalizer=1)
    alone = [
        dpo(*[[column[i]] for column in columns], beta=beta, normalizer=1)[0]
        for i, beta in enumerate((0.1, 0.4))
    ]
    assert_close(both, alone[0] + alone[1])


def test_dynamic_beta_by_hand():
    margin_B = torch.tensor([-5.0, 0.0, 1.0, 1e6])
    expected = torch.tensor([1.0, 1.0, 1.19673, 1.5]) * 0.1
    assert_close(dynamic_beta(margin_B, beta=0.1), expected, rtol=1e-5, atol=0.0)
    assert_close(dynamic_beta(margin_B, beta=0.1, w=0.0), torch.full((4,), 0.1))


@fast
@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=6))
def test_dynamic_beta_rises_within_its_bounds(margins):
    beta_B = dynamic_beta(torch.tensor(sorted(margins)), beta=0.1)
    assert bool((beta_B.diff() >= 0).all())
    assert float(beta_B.min()) >= 0.1 - 1e-7 and float(beta_B.max()) <= 0.15 + 1e-7


def test_sft_by_hand():
    # rows: -(-1 -2) = 3 with weight 1, -(-4) = 4 with weight 0.5: 5 over 3 tokens
    loss, metrics = sft_loss(
        torch.tensor([[-1.0, -2.0], [-4.0, -50.0]]),
        torch.tensor([[1, 1], [1, 0]]),
        torch.tensor([1.0, 0.5]),
        normalizer=3,
    )
    assert loss.item() == pytest.approx(5 / 3)
    assert metrics == {"loss/sft": (5.0, 3.0), "sft/nll": (7.0, 3.0)}


def test_nsft_as_row_weights_is_the_sum_of_two_token_means():
    logprobs_BR = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -6.0, 0.0]])
    mask_BR = torch.tensor([[1, 1, 1], [1, 1, 0]])
    both, _ = sft_loss(logprobs_BR, mask_BR, torch.tensor([1 / 3, 1 / 2]), normalizer=1)
    one = torch.ones(1)
    chosen, _ = sft_loss(logprobs_BR[:1], mask_BR[:1], one, normalizer=3)
    turns, _ = sft_loss(logprobs_BR[1:], mask_BR[1:], one, normalizer=2)
    assert_close(both, chosen + turns)
    without_chosen, _ = sft_loss(logprobs_BR, mask_BR, torch.tensor([0.0, 1 / 2]), normalizer=1)
    assert_close(without_chosen, turns)


@fast
@given(seeds, st.integers(1, 4))
def test_accumulated_gradients_equal_those_of_one_batch(seed, size):
    inputs = draw(8, 5, seed)
    tokens = float(inputs[3].sum())

    def gradients(micro_batch: int):
        found, metrics = {}, {}
        for name in ("ppo", "value", "sft"):
            leaf_BR = inputs[0].clone().requires_grad_()
            parts = []
            for start in range(0, 8, micro_batch):
                part = slice(start, start + micro_batch)
                rest = [tensor[part] for tensor in inputs[1:]]
                loss, part_metrics = every_token_loss(leaf_BR[part], *rest, tokens)[name]
                loss.backward()
                parts.append(part_metrics)
            found[name], metrics[name] = leaf_BR.grad, metric_means(add_metrics(parts))
        return found, metrics

    whole, whole_metrics = gradients(8)
    parts, part_metrics = gradients(size)
    for name in whole:
        assert_close(parts[name], whole[name])
        assert part_metrics[name] == pytest.approx(whole_metrics[name], abs=1e-5)


@fast
@given(seeds)
def test_accumulated_dpo_equals_one_batch(seed):
    torch.manual_seed(seed)
    columns = torch.randn(4, 8)

    def gradient(micro_batch: int):
        leaf = columns[:2].clone().requires_grad_()
        for start in range(0, 8, micro_batch):
            part = slice(start, start + micro_batch)
            dpo_loss(
                leaf[0, part],
                leaf[1, part],
                columns[2, part],
                columns[3, part],
                beta=0.2,
                normalizer=8,
            )[0].backward()
        return leaf.grad

    assert_close(gradient(1), gradient(8))


@fast
@given(seeds, st.integers(1, 3))
def test_padding_and_row_order_never_change_anything(seed, extra):
    inputs = draw(3, 4, seed)
    mask_BR = inputs[3]
    order = torch.tensor([2, 0, 1])

    def run(tensors, pad_with: float | None):
        *values, mask = tensors
        if pad_with is not None:
            values = [
                torch.nn.functional.pad(v.masked_fill(~mask, pad_with), (0, extra), value=pad_with)
                for v in values
            ]
            mask = torch.nn.functional.pad(mask, (0, extra), value=False)
        values[0] = values[0].clone().requires_grad_()
        results = every_token_loss(*values, mask, 5)
        out = {}
        for name, (loss, metrics) in results.items():
            (grad_BR,) = torch.autograd.grad(loss, values[0])
            assert float(grad_BR[~mask].abs().sum()) == 0.0
            out[name] = (loss.detach(), grad_BR[mask], metrics)
        return out

    plain = run(inputs, None)
    for pad_with in (0.0, 1e4, math.inf, math.nan):
        for name, (loss, grad, metrics) in run(inputs, pad_with).items():
            assert_close(loss, plain[name][0])
            assert_close(grad, plain[name][1])
            assert metric_means(metrics) == pytest.approx(metric_means(plain[name][2]), abs=1e-5)
    for name, (loss, _, _) in run([tensor[order] for tensor in inputs], None).items():
        assert_close(loss, plain[name][0])
    assert mask_BR.any()


def test_metrics_add_up_and_empty_ones_have_no_mean():
    total = add_metrics([{"a": (1.0, 2.0)}, {"a": (3.0, 2.0), "b": (0.0, 0.0)}])
    assert total == {"a": (4.0, 4.0), "b": (0.0, 0.0)}
    assert metric_means(total) == {"a": 1.0}
