"""Axes: B pairs, R critique tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rewards.losses import critique_reward_loss

NONE = torch.zeros(1, 0)


def loss_of(chosen, rejected, *, critiques=None, **options):
    chosen_B, rejected_B = torch.tensor(chosen), torch.tensor(rejected)
    empty = torch.zeros(len(chosen), 0)
    defaults = {"normalizer": len(chosen), "critique_normalizer": 0}
    return critique_reward_loss(
        chosen_B, rejected_B, *(critiques or [empty] * 4), **(defaults | options)
    )


def test_by_hand():
    # S = softplus(-(2 - 0.5)); C = (1 + 2 + 3) / 3; centring 0.01 * (2 + 0.5)^2
    critiques = [
        torch.tensor([[-1.0, -2.0, -99.0]]),
        torch.tensor([[1, 1, 0]]),
        torch.tensor([[-3.0]]),
        torch.tensor([[1]]),
    ]
    loss, metrics = loss_of(
        [2.0],
        [0.5],
        critiques=critiques,
        score_weight=2.0,
        critique_weight=0.5,
        critique_normalizer=3,
    )
    expected = 2 * math.log(1 + math.exp(-1.5)) + 0.5 * 2.0 + 0.01 * 6.25
    assert loss.item() == pytest.approx(expected)
    assert metrics["loss/critique"] == (6.0, 3.0)
    assert metrics["rewards/margins"] == (1.5, 1.0)
    assert metrics["rewards/accuracies"] == (1.0, 1.0)


def test_equal_zero_scores_without_critiques_give_ln_2():
    loss, metrics = loss_of([0.0, 0.0], [0.0, 0.0])
    assert loss.item() == pytest.approx(math.log(2))
    assert metrics["loss/critique"] == (0.0, 0.0)


def test_margin_is_subtracted_inside_the_sigmoid():
    loss, _ = loss_of([3.0], [1.0], margin_B=torch.tensor([2.0]), center_coef=0.0)
    assert loss.item() == pytest.approx(math.log(2))


def test_a_tie_pulls_scores_together_and_has_no_bradley_terry_term():
    # tie: 0.5 * (1 - 3)^2 = 2; the other pair: ln 2
    loss, metrics = loss_of(
        [1.0, 0.0],
        [3.0, 0.0],
        is_tie_B=torch.tensor([True, False]),
        tie_weight=0.5,
        center_coef=0.0,
    )
    assert loss.item() == pytest.approx((2.0 + math.log(2)) / 2)
    assert metrics["rewards/margins"] == (0.0, 1.0)


def test_centring_moves_the_sum_of_scores_towards_zero_only():
    chosen_B = torch.tensor([3.0], requires_grad=True)
    rejected_B = torch.tensor([1.0], requires_grad=True)
    loss, _ = critique_reward_loss(
        chosen_B, rejected_B, *[NONE] * 4, normalizer=1, critique_normalizer=0, score_weight=0.0
    )
    loss.backward()
    # d/dr 0.01 (r_c + r_r)^2 = 0.02 * 4 on both sides
    assert_close(chosen_B.grad, torch.tensor([0.08]))
    assert_close(rejected_B.grad, torch.tensor([0.08]))


def test_a_side_without_critique_changes_nothing_even_if_it_holds_nan():
    critiques = [
        torch.tensor([[-1.0], [math.nan]]),
        torch.tensor([[1], [0]]),
        torch.full((2, 1), math.nan),
        torch.zeros(2, 1),
    ]
    critiques[0].requires_grad_()
    loss, metrics = loss_of([0.0, 0.0], [0.0, 0.0], critiques=critiques, critique_normalizer=1)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) + 1.0)
    assert_close(critiques[0].grad, torch.tensor([[-1.0], [0.0]]))
    assert metrics["loss/critique"] == (1.0, 1.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.sampled_from([1, 2, 4]))
def test_accumulation_over_micro_batches_equals_one_batch(seed, size):
    torch.manual_seed(seed)
    scores, logprobs = torch.randn(2, 8), torch.randn(2, 8, 3)
    masks = torch.rand(2, 8, 3) < 0.6
    ties_B = torch.rand(8) < 0.3

    def gradient(micro_batch: int):
        leaves = (scores.clone().requires_grad_(), logprobs.clone().requires_grad_())
        for start in range(0, 8, micro_batch):
            part = slice(start, start + micro_batch)
            critique_reward_loss(
                leaves[0][0, part],
                leaves[0][1, part],
                leaves[1][0, part],
                masks[0, part],
                leaves[1][1, part],
                masks[1, part],
                normalizer=8,
                critique_normalizer=float(masks.sum()),
                is_tie_B=ties_B[part],
            )[0].backward()
        return [leaf.grad for leaf in leaves]

    assert_close(gradient(size), gradient(8))
