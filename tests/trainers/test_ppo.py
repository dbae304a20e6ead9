"""PPO's choices around the losses: scores, advantages of the whole round, schedules."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from trainers.batch import Batch, Row
from trainers.config import PPOConfig
from trainers.method import Outputs
from trainers.ppo import PPO


def select(method, scored, samples):
    by_id = {sample.id: sample for sample in samples}
    return method.select(scored, by_id, random.Random(0)).groups


def scores_of(groups):
    return [row.scalars["score"] for (row,) in groups]


def test_the_first_round_fixes_mean_and_spread(samples, make_scored):
    method = PPO(PPOConfig())
    first = [make_scored(str(i), samples[0].id, s) for i, s in enumerate((1.0, 3.0))]
    # mean 2, spread 1: -1 and 1
    assert scores_of(select(method, first, samples)) == pytest.approx([-1.0, 1.0], abs=1e-4)
    second = [make_scored(str(i), samples[0].id, s) for i, s in enumerate((3.0, 4.0, 5.0))]
    # still mean 2, spread 1, so progress is seen
    assert scores_of(select(method, second, samples)) == pytest.approx([1.0, 2.0, 3.0], abs=1e-4)


def test_scores_are_clipped_and_cut_off_responses_pay(samples, make_scored):
    method = PPO(PPOConfig(score_clip=1.5, missing_eos_penalty=-0.5))
    method.scale.mean, method.scale.std = 0.0, 1.0
    scored = [
        make_scored("a", samples[0].id, 9.0),
        make_scored("b", samples[0].id, 9.0, finish_reason="length"),
        make_scored("c", samples[0].id, -9.0, finish_reason="length"),
    ]
    assert scores_of(select(method, scored, samples)) == [1.5, 1.0, -2.0]


def test_equal_scores_do_not_divide_by_zero(samples, make_scored):
    scored = [make_scored(str(i), samples[0].id, 2.0) for i in range(3)]
    assert scores_of(select(PPO(PPOConfig()), scored, samples)) == [0.0, 0.0, 0.0]


def test_targets_are_the_sampled_ids(samples, make_scored):
    scored = [make_scored("a", samples[0].id, 1.0, token_ids=(9, 9, 1))]
    ((row,),) = select(PPO(PPOConfig()), scored, samples)
    assert row.response_ids == (9, 9, 1) and row.id == "a"


def row(old, ref, values, score) -> Row:
    result = Row(id="r", prompt=(), images=(), response_ids=(5,) * len(old))
    result.tokens = {
        "old_logprobs": np.array(old, dtype=np.float32),
        "ref_logprobs": np.array(ref, dtype=np.float32),
        "old_values": np.array(values, dtype=np.float32),
    }
    result.scalars = {"score": score}
    return result


def test_rewards_and_returns_by_hand():
    method = PPO(PPOConfig(kl_coef=0.5, gamma=1.0, gae_lambda=1.0))
    # KL terms: -0.5 * (old - ref) = -0.5, 0 and, of the second row, 1.
    first = row([-1.0, -2.0], [-2.0, -2.0], [0.3, 0.1], 2.0)
    second = row([-3.0], [-1.0], [0.0], -1.0)
    metrics = method.prepare([(first,), (second,)])
    # lambda = 1: the return is the sum of rewards still to come, whatever the values say.
    np.testing.assert_allclose(first.tokens["returns"], [-0.5 + 2.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(second.tokens["returns"], [1.0 - 1.0], atol=1e-6)
    # Advantages before whitening: 1.5 - 0.3, 2 - 0.1, 0 - 0. Whitened over all three tokens.
    raw = np.array([1.2, 1.9, 0.0])
    expected = (raw - raw.mean()) / raw.std()
    found = np.concatenate([first.tokens["advantages"], second.tokens["advantages"]])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert metrics["objective/kl"] == pytest.approx((1.0 - 2.0) / 2)
    assert metrics["objective/rlhf_reward"] == pytest.approx((1.5 + 0.0) / 2)


def test_equal_policy_and_reference_have_no_kl():
    method = PPO(PPOConfig())
    metrics = method.prepare([(row([-1.0, -2.0], [-1.0, -2.0], [0.0, 0.0], 1.0),)])
    assert metrics["objective/kl"] == 0.0
    assert metrics["objective/non_score_reward"] == 0.0
    assert metrics["objective/rlhf_reward"] == 1.0


def test_critic_warms_up_alone():
    method = PPO(PPOConfig(critic_warmup_rounds=1, epochs=3))
    groups = [(row([-1.0], [-1.0], [0.0], 1.0),)]
    method.prepare(groups)
    assert method.optimisation("policy").epochs == 0
    assert method.optimisation("critic").epochs == 3
    method.prepare(groups)
    assert method.optimisation("policy").epochs == 3


def batch(tokens, mask) -> Batch:
    empty = torch.zeros(0)
    return Batch(
        input_ids_BT=torch.zeros(mask.shape, dtype=torch.long),
        attention_mask_BT=empty,
        positions_N3=empty,
        targets_N=empty,
        last_B=empty,
        mask_BR=mask,
        model_inputs={},
        tokens=tokens,
        scalars={},
    )


def test_policy_gradient_at_ratio_one_is_the_advantage():
    mask = torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]])
    advantages = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    logprobs = old.clone().requires_grad_()
    method = PPO(PPOConfig())
    one = batch({"old_logprobs": old, "advantages": advantages}, mask)
    assert method.totals(one) == {"tokens": 3.0, "rows": 2.0}
    loss, metrics = method.loss("policy", Outputs(logprobs_BR=logprobs), one, method.totals(one))
    loss.backward()
    # -A / tokens of the step; padding gets nothing
    torch.testing.assert_close(logprobs.grad, -advantages / 3)
    assert metrics["policy/ratio"] == (3.0, 3.0)
    assert metrics["policy/clipfrac"][0] == 0


def test_critic_loss_by_hand():
    mask = torch.tensor([[True, True]])
    tokens = {"old_values": torch.zeros(1, 2), "returns": torch.tensor([[1.0, -2.0]])}
    values = torch.zeros(1, 2)
    method = PPO(PPOConfig(vf_coef=0.5))
    loss, _ = method.loss("critic", Outputs(values_BR=values), batch(tokens, mask), {"tokens": 2.0})
    # 0.5 * (0.5 * 1 + 0.5 * 4) / 2
    assert float(loss) == pytest.approx(0.625)
