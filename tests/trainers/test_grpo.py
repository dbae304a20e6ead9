"""GRPO and RLOO: groups by prompt, one advantage a response, KL in the loss or in the reward."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from trainers.batch import Row
from trainers.config import GRPOConfig
from trainers.grpo import GRPO
from trainers.method import Outputs


def row(old, ref, score, prompt) -> Row:
    result = Row(id="r", prompt=(), images=(), response_ids=(1,) * len(old))
    result.tokens = {
        "old_logprobs": np.array(old, dtype=np.float32),
        "ref_logprobs": np.array(ref, dtype=np.float32),
    }
    result.scalars = {"score": score, "prompt": prompt}
    return result


def test_select_groups_by_prompt_and_punishes_what_was_cut_off(samples, make_scored):
    by_id = {sample.id: sample for sample in samples}
    a, b = samples[0].id, samples[1].id
    scored = [
        make_scored("a0", a, 1.0),
        make_scored("b0", b, 1.0, finish_reason="length"),
        make_scored("a1", a, -1.0),
        make_scored("b1", b, -1.0),
    ]
    method = GRPO(GRPOConfig(missing_eos_penalty=-2.0))
    rows = [each for (each,) in method.select(scored, by_id, random.Random(0)).groups]
    assert [each.scalars["prompt"] for each in rows] == [0.0, 1.0, 0.0, 1.0]
    # mean 0, spread 1: standardising leaves the scores alone
    assert [each.scalars["score"] for each in rows] == pytest.approx([1, 1 - 2, -1, -1], abs=1e-5)


def test_grpo_advantages_do_not_contain_the_kl():
    rows = [row([-1.0, -2], [-3.0, -3], 1.0, 0), row([-1.0], [-1.0], 3.0, 0)]
    metrics = GRPO(GRPOConfig()).prepare([(each,) for each in rows])
    np.testing.assert_allclose(rows[0].tokens["advantages"], [-1.0, -1.0], atol=1e-5)
    np.testing.assert_allclose(rows[1].tokens["advantages"], [1.0], atol=1e-5)
    assert metrics["objective/kl"] == pytest.approx((3.0 + 0.0) / 2)
    assert metrics["groups/without_signal"] == 0.0


def test_rloo_advantages_contain_the_kl_of_the_whole_response():
    rows = [row([-1.0, -2], [-3.0, -3], 1.0, 0), row([-1.0], [-1.0], 3.0, 0)]
    GRPO(GRPOConfig(estimator="rloo", kl_coef=0.5)).prepare([(each,) for each in rows])
    # rewards 1 - 0.5 * 3 and 3: each is the other's baseline
    np.testing.assert_allclose(rows[0].tokens["advantages"], [-3.5, -3.5])
    np.testing.assert_allclose(rows[1].tokens["advantages"], [3.5])


def test_groups_without_a_difference_are_counted_and_give_no_gradient_but_the_kl(make_batch):
    rows = [row([-1.0], [-1.0], 2.0, 0), row([-2.0], [-2.0], 2.0, 0)]
    method = GRPO(GRPOConfig(kl_coef=0.5))
    metrics = method.prepare([(each,) for each in rows])
    assert metrics["groups/share_without_signal"] == 1.0
    old = torch.tensor([[-1.0], [-2.0]])
    batch = make_batch(
        torch.ones(2, 1).bool(), old_logprobs=old, ref_logprobs=old, advantages=torch.zeros(2, 1)
    )
    logprobs = old.clone().requires_grad_()
    loss, _ = method.loss("policy", Outputs(logprobs_BR=logprobs), batch, method.totals(batch))
    loss.backward()
    assert loss.item() == 0.0 and logprobs.grad.abs().sum() == 0.0


MASK = torch.tensor([[True, True], [True, False]])
OLD = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]])
ADVANTAGES = torch.tensor([[1.0, 1.0], [-1.0, 0.0]])


@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_at_ratio_one_and_at_the_reference_it_is_the_policy_gradient(make_batch, estimator):
    batch = make_batch(MASK, old_logprobs=OLD, ref_logprobs=OLD, advantages=ADVANTAGES)
    logprobs = OLD.clone().requires_grad_()
    method = GRPO(GRPOConfig(estimator=estimator))
    loss, metrics = method.loss("policy", Outputs(logprobs_BR=logprobs), batch, {"tokens": 3.0})
    loss.backward()
    torch.testing.assert_close(logprobs.grad, -ADVANTAGES / 3)
    assert metrics["policy/ratio"] == (3.0, 3.0)
    assert metrics["policy/clipfrac"][0] == 0


def test_kl_term_by_hand_and_only_in_grpo(make_batch):
    ref = OLD - math.log(2)  # the policy says each token twice as often as the reference
    batch = make_batch(MASK, old_logprobs=OLD, ref_logprobs=ref, advantages=0 * ADVANTAGES)
    outputs = Outputs(logprobs_BR=OLD.clone().requires_grad_())
    k3 = 0.5 - 1 + math.log(2)
    loss, metrics = GRPO(GRPOConfig(kl_coef=0.1)).loss("policy", outputs, batch, {"tokens": 6.0})
    assert loss.item() == pytest.approx(0.1 * 3 * k3 / 6)  # 3 tokens here of 6 in the step
    assert metrics["loss/kl"] == (pytest.approx(3 * k3), 3.0)
    (gradient,) = torch.autograd.grad(loss, outputs.logprobs_BR)
    # (1 - ref / policy) of each token
    torch.testing.assert_close(gradient, 0.1 * 0.5 * MASK / 6)
    loss, _ = GRPO(GRPOConfig(estimator="rloo")).loss("policy", outputs, batch, {"tokens": 6.0})
    assert loss.item() == 0.0


def test_the_kl_term_is_weighted_where_other_weights_sampled(make_batch):
    # At exp(ref - logprob) = 1/2 a token's k3 is ln 2 - 1/2 and its gradient 1/2, each times w.
    ref, weights = OLD - math.log(2), torch.tensor([[0.5, 2.0], [1.5, float("nan")]])
    signals = {"old_logprobs": OLD, "ref_logprobs": ref, "advantages": 0 * ADVANTAGES}
    outputs = Outputs(logprobs_BR=OLD.clone().requires_grad_())
    method = GRPO(GRPOConfig(kl_coef=0.1))
    batch = make_batch(MASK, **signals, importance=weights)
    loss, metrics = method.loss("policy", outputs, batch, {"tokens": 6.0})
    assert metrics["loss/kl"] == (pytest.approx(4.0 * (math.log(2) - 0.5)), 3.0)
    (gradient,) = torch.autograd.grad(loss, outputs.logprobs_BR)
    torch.testing.assert_close(gradient, 0.1 * 0.5 * weights.nan_to_num(0.0) / 6)
    ones = make_batch(MASK, **signals, importance=torch.ones(2, 2))
    plain = make_batch(MASK, **signals)
    one, other = (
        method.loss("policy", outputs, each, {"tokens": 6.0})[0] for each in (ones, plain)
    )
    assert torch.equal(one, other)


def test_halves_of_a_step_add_up_to_it(make_batch):
    torch.manual_seed(0)
    logprobs = OLD + 0.4 * torch.randn(2, 2)
    ref = OLD - 0.3
    method = GRPO(GRPOConfig())
    signals = {"old_logprobs": OLD, "ref_logprobs": ref, "advantages": ADVANTAGES}
    whole = make_batch(MASK, **signals)
    totals = method.totals(whole)
    expected, _ = method.loss("policy", Outputs(logprobs_BR=logprobs), whole, totals)
    parts = 0.0
    for i in (slice(0, 1), slice(1, 2)):
        half = make_batch(MASK[i], **{name: value[i] for name, value in signals.items()})
        parts += float(method.loss("policy", Outputs(logprobs_BR=logprobs[i]), half, totals)[0])
    assert parts == pytest.approx(float(expected))
