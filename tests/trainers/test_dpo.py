"""DPO: groups of chosen and rejected, summed logprobs, the reference as the origin."""

from __future__ import annotations

import math
import random

import pytest
import torch

from trainers.batch import Batch
from trainers.config import DPOConfig, PairsConfig
from trainers.dpo import DPO
from trainers.method import Outputs


def batch(mask, ref, margins) -> Batch:
    empty = torch.zeros(0)
    return Batch(
        input_ids_BT=torch.zeros(mask.shape, dtype=torch.long),
        attention_mask_BT=empty,
        positions_N3=empty,
        targets_N=empty,
        last_B=empty,
        mask_BR=mask,
        model_inputs={},
        tokens={"ref_logprobs": ref},
        scalars={"margin": torch.tensor(margins)},
    )


MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()
REF = torch.tensor([[-1.0, -2, -3], [-4, 0, 0], [-1, -1, 0], [-2, -2, -2]])
TWO_PAIRS = batch(MASK, REF, [1.0, 1.0, 3.0, 3.0])


def test_select_gives_chosen_then_rejected(samples, make_scored):
    by_id = {sample.id: sample for sample in samples}
    scored = [
        make_scored(f"{sample.id}/{i}", sample.id, score)
        for sample in samples[:2]
        for i, score in enumerate((0.0, 2.0, -1.0, None))
    ]
    method = DPO(DPOConfig(pairs=PairsConfig(margin=0.5)))
    selection = method.select(scored, by_id, random.Random(0))
    assert [tuple(row.id[-2:] for row in group) for group in selection.groups] == [("/1", "/2")] * 2
    assert all(row.scalars["margin"] == 3.0 for group in selection.groups for row in group)
    assert selection.stats["pairs/num"] == 2.0


def test_totals_count_pairs_and_chosen_tokens():
    assert DPO(DPOConfig()).totals(TWO_PAIRS) == {"pairs": 2.0, "chosen_tokens": 5.0}


@pytest.mark.parametrize("dynamic", [False, True])
def test_policy_at_the_reference_gives_ln_2(dynamic):
    method = DPO(DPOConfig(dynamic_beta=dynamic))
    loss, metrics = method.loss("policy", Outputs(logprobs_BR=REF), TWO_PAIRS, {"pairs": 2.0})
    assert float(loss) == pytest.approx(math.log(2))
    assert metrics["rewards/margins"][0] == 0.0


def test_gradient_by_hand_and_sums_not_means():
    logprobs = REF.clone().requires_grad_()
    method = DPO(DPOConfig(beta=0.1))
    loss, _ = method.loss("policy", Outputs(logprobs_BR=logprobs), TWO_PAIRS, {"pairs": 2.0})
    loss.backward()
    # beta * sigmoid(0) / pairs = 0.1 * 0.5 / 2 per token of a row, however long: the even rows are
    # chosen (logprob goes up), the odd rejected, and padding has no part.
    sign = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])
    torch.testing.assert_close(logprobs.grad, 0.025 * sign * MASK)


def test_dynamic_beta_weighs_pairs_by_their_margin():
    logprobs = REF.clone().requires_grad_()
    method = DPO(DPOConfig(beta=0.1, dynamic_beta=True, dynamic_beta_w=0.5, dynamic_beta_k=0.5))
    loss, _ = method.loss("policy", Outputs(logprobs_BR=logprobs), TWO_PAIRS, {"pairs": 2.0})
    loss.backward()
    # 1 + 0.5 * (1 - exp(-0.5 * margin)): 1.19673 at margin 1, 1.38843 at margin 3
    assert float(logprobs.grad[1, 0]) == pytest.approx(0.025 * 1.19673, rel=1e-4)
    assert float(logprobs.grad[3, 0]) == pytest.approx(0.025 * 1.38843, rel=1e-4)


def test_sft_term_is_the_mean_nll_of_the_chosen_tokens():
    plain, mixed = DPO(DPOConfig()), DPO(DPOConfig(sft_coef=0.5))
    totals = plain.totals(TWO_PAIRS)
    outputs = Outputs(logprobs_BR=REF)
    without, _ = plain.loss("policy", outputs, TWO_PAIRS, totals)
    with_term, _ = mixed.loss("policy", outputs, TWO_PAIRS, totals)
    # chosen rows: 1 + 2 + 3 and 1 + 1 over 5 tokens
    assert float(with_term - without) == pytest.approx(0.5 * 8 / 5)


def test_halves_of_a_step_add_up_to_it():
    method = DPO(DPOConfig(sft_coef=0.3))
    torch.manual_seed(0)
    logprobs = REF + 0.5 * torch.randn(REF.shape)
    totals = method.totals(TWO_PAIRS)
    whole, _ = method.loss("policy", Outputs(logprobs_BR=logprobs), TWO_PAIRS, totals)
    parts = 0.0
    for rows in (slice(0, 2), slice(2, 4)):
        half = batch(MASK[rows], REF[rows], TWO_PAIRS.scalars["margin"][rows].tolist())
        loss, _ = method.loss("policy", Outputs(logprobs_BR=logprobs[rows]), half, totals)
        parts += float(loss)
    assert parts == pytest.approx(float(whole))
