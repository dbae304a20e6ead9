"""POVID: the paper's single sigmoid by hand, its limits, and rows under a distorted image."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from trainers.batch import Batch, collate, encode_row
from trainers.config import POVIDConfig
from trainers.losses import dpo_loss
from trainers.method import Outputs
from trainers.povid import POVID, povid_loss


def batch(mask, ref) -> Batch:
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
        scalars={},
    )


# Two groups of chosen, wrong version, and the policy's tokens along the chosen one under noise.
MASK = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1], [1, 1], [1, 1]]).bool()
REF = torch.tensor([[-1.0, -2], [-4, 0], [-2, -2], [-1, -1], [-3, -3], [-1, -2]])
GROUPS = batch(MASK, REF)


def test_the_loss_by_hand():
    # 0.1 * 3 - (0.05 * 2 + 0.05 * -1) = 0.25; -log sigmoid(0.25) = 0.575939
    loss, metrics = povid_loss(
        torch.tensor([3.0]),
        torch.tensor([2.0]),
        torch.tensor([-1.0]),
        beta=0.1,
        text_coef=0.05,
        noise_coef=0.05,
        normalizer=1.0,
    )
    assert float(loss) == pytest.approx(0.575939, abs=1e-6)
    assert metrics["rewards/chosen"] == (pytest.approx(0.3), 1.0)
    assert metrics["rewards/noise"] == (pytest.approx(-0.05), 1.0)
    assert metrics["rewards/margins"] == (pytest.approx(0.25), 1.0)


def test_policy_at_the_reference_gives_ln_2():
    loss, _ = POVID(POVIDConfig()).loss("policy", Outputs(logprobs_BR=REF), GROUPS, {"groups": 2.0})
    assert float(loss) == pytest.approx(math.log(2))


def test_without_noise_it_is_dpo():
    torch.manual_seed(0)
    chosen, text = torch.randn(5), torch.randn(5)
    loss, _ = povid_loss(
        chosen, text, torch.zeros(5), beta=0.1, text_coef=0.1, noise_coef=0.0, normalizer=5.0
    )
    zeros = torch.zeros(5)
    expected, _ = dpo_loss(chosen, text, zeros, zeros, beta=0.1, normalizer=5.0)
    torch.testing.assert_close(loss, expected)


def test_gradient_by_hand():
    logprobs = REF.clone().requires_grad_()
    method = POVID(POVIDConfig(beta=0.1, text_coef=0.06, noise_coef=0.02))
    assert method.totals(GROUPS) == {"groups": 2.0}
    loss, _ = method.loss("policy", Outputs(logprobs_BR=logprobs), GROUPS, {"groups": 2.0})
    loss.backward()
    # sigmoid(0) / groups = 0.25 times each coefficient; padding has no part
    weights = 0.25 * torch.tensor([-0.1, 0.06, 0.02] * 2)[:, None]
    torch.testing.assert_close(logprobs.grad, weights * MASK)


def test_halves_of_a_step_add_up_to_it():
    method = POVID(POVIDConfig())
    torch.manual_seed(0)
    logprobs = REF + 0.5 * torch.randn(REF.shape)
    totals = method.totals(GROUPS)
    whole, _ = method.loss("policy", Outputs(logprobs_BR=logprobs), GROUPS, totals)
    parts = [
        method.loss(
            "policy", Outputs(logprobs_BR=logprobs[rows]), batch(MASK[rows], REF[rows]), totals
        )[0]
        for rows in (slice(0, 3), slice(3, 6))
    ]
    assert float(sum(parts)) == pytest.approx(float(whole))


def test_rows_of_a_group(samples, make_scored):
    sample = samples[0]
    scored = [make_scored("right", sample.id, 1.0), make_scored("wrong", sample.id, 0.0)]
    for text_coef, noise_coef, names in (
        (0.05, 0.05, ["right", "wrong", "right/noised"]),
        (0.05, 0.0, ["right", "wrong"]),
        (0.0, 0.05, ["right", "right/noised"]),
    ):
        method = POVID(POVIDConfig(text_coef=text_coef, noise_coef=noise_coef, noise_step=700))
        (group,) = method.select(scored, {sample.id: sample}, random.Random(0)).groups
        assert [row.id for row in group] == names
        noised = [row for row in group if row.noise is not None]
        assert all(row.greedy and row.noise.step == 700 for row in noised)
        assert all(row.noise.key == sample.id for row in noised)
    with pytest.raises(ValueError, match="both 0"):
        POVIDConfig(text_coef=0.0, noise_coef=0.0)


def test_target_ids_replace_targets_and_not_inputs(processing, samples):
    rows = [row for sample in samples[:2] for row in [_row(sample, (10, 11, 12))]]
    rows[1].target_ids = np.array([20, 21, 22])
    encoded = [encode_row(row, processing) for row in rows]
    made = collate(rows, encoded, processing)
    assert made.targets_N.tolist() == [10, 11, 12, 20, 21, 22]
    assert made.input_ids_BT[1, made.last_B[1] - 2 : made.last_B[1] + 1].tolist() == [10, 11, 12]
    rows[1].target_ids = np.array([20])
    with pytest.raises(ValueError, match="1 target ids for 3 target tokens"):
        collate(rows, encoded, processing)


def test_greedy_tokens_are_the_likeliest_under_the_distorted_image(tiny_model, processing, samples):
    from actors.modules import PolicyModule, load_vlm
    from trainers.data.noise import ImageNoise

    module = PolicyModule(load_vlm(tiny_model), banned_ids=processing.banned_ids(), chunk_size=2)
    row = _row(samples[0], (10, 11, 12))
    row.noise = ImageNoise(900, samples[0].id)
    encoded = encode_row(row, processing)
    with torch.no_grad():
        tokens = module(collate([row], [encoded], processing), greedy=True).tokens_BR[0]
        # No other allowed token has a higher log-probability at the same place.
        row.target_ids = tokens.numpy()
        best = module(collate([row], [encoded], processing)).logprobs_BR[0]
        for other in range(processing.vocab_size):
            if other in processing.banned_ids():
                continue
            row.target_ids = np.full(3, other)
            assert (
                module(collate([row], [encoded], processing)).logprobs_BR[0] <= best + 1e-6
            ).all()
    assert not set(tokens.tolist()) & set(processing.banned_ids())


def _row(sample, ids):
    from trainers.batch import Row

    return Row.of_response(sample, ids, f"{sample.id}/row")
