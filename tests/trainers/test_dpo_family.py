"""The DPO family's choices around its losses: normalised lengths, contrast sets, optimism."""

from __future__ import annotations

import math
import random

import pytest
import torch
from pydantic import ValidationError

from trainers.batch import Batch
from trainers.config import (
    DPOConfig,
    PairsConfig,
    RPOConfig,
    SELMConfig,
    SimPOConfig,
)
from trainers.data.records import Sample, Turn
from trainers.dpo import DPO
from trainers.losses import metric_means
from trainers.method import Outputs
from trainers.rpo import RPO, contrast_weights, similarity
from trainers.selm import SELM
from trainers.simpo import SimPO

MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()
REF = torch.tensor([[-1.0, -2, -3], [-4, 0, 0], [-1, -1, 0], [-2, -2, -2]])


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_length_normalised_dpo_by_hand(make_batch):
    batch = make_batch(MASK, ref_logprobs=REF, margin=[1.0] * 4)
    logprobs = (REF + MASK * torch.tensor([[1.0], [2.0], [-1.0], [0.5]])).requires_grad_()
    method = DPO(DPOConfig(beta=0.5, length_normalised=True))
    loss, _ = method.loss("policy", Outputs(logprobs_BR=logprobs), batch, {"pairs": 2.0})
    # per token the first pair moved by 1 and 2, the second by -1 and 0.5, whatever the lengths
    assert loss.item() == pytest.approx(-(log_sigmoid(-0.5) + log_sigmoid(-0.75)) / 2)
    loss.backward()
    # a token's share is one over its response's length
    assert logprobs.grad[0, 0].item() == pytest.approx(logprobs.grad[1, 0].item() / -3)


def test_dynamic_beta_and_ipo_do_not_go_together():
    with pytest.raises(ValidationError, match=r"dynamic_beta does not fit method\.loss=ipo"):
        DPOConfig(dynamic_beta=True, loss="ipo")


def test_simpo_reads_means_per_token_and_no_reference(make_batch):
    batch = make_batch(MASK)
    method = SimPO(SimPOConfig(beta=2.0, gamma=0.5, sft_coef=0.1))
    totals = method.totals(batch)
    assert totals == {"pairs": 2.0, "chosen_tokens": 5.0}
    loss, metrics = method.loss("policy", Outputs(logprobs_BR=REF), batch, totals)
    # means: -2 against -4, -1 against -2; NLL of the chosen 6 + 2 over 5 tokens
    preference = -(log_sigmoid(2 * 2 - 0.5) + log_sigmoid(2 * 1 - 0.5)) / 2
    assert loss.item() == pytest.approx(preference + 0.1 * 8 / 5)
    assert metric_means(metrics)["logps/chosen"] == pytest.approx(-1.5)
    assert method.signals == ()


def prompt(text: str, image: str, id: str = "s") -> Sample:
    turn = Turn(role="user", text=text, num_images=1)
    return Sample(id=id, prompt=(turn,), images=(image,))


def test_similarity_of_prompts_by_hand():
    first = prompt("what is there ?", "x")
    assert similarity(first, prompt("what is there ?", "x")) == pytest.approx(1.0)
    # four words of five and the image: 4 / 5
    assert similarity(first, prompt("What is there ?", "y")) == pytest.approx(4 / 5)
    assert similarity(first, prompt("describe it .", "y")) == 0.0
    # weights: softmax of 0, -0.2 / 0.5, -1 / 0.5
    exps = [1.0, math.exp(-0.4), math.exp(-2.0)]
    others = [first, prompt("what is there ?", "y"), prompt("describe it .", "y")]
    assert contrast_weights(first, others, 0.5) == pytest.approx([e / sum(exps) for e in exps])
    assert all(weight > 0 for weight in contrast_weights(first, others, 1e-4))


def rpo_groups(make_scored, samples, size: int):
    by_id = {sample.id: sample for sample in samples}
    scored = [
        make_scored(f"{sample.id}/{i}", sample.id, score)
        for sample in samples[:5]
        for i, score in enumerate((0.0, 2.0))
    ]
    method = RPO(RPOConfig(contrast_size=size, pairs=PairsConfig(max_pairs_per_prompt=1)))
    return method, method.select(scored, by_id, random.Random(0)).groups


def as_batch(make_batch, groups, seed: int) -> tuple[Batch, torch.Tensor]:
    """The rows of `groups` as one micro-batch, and logprobs that depend on the row alone."""
    rows = [row for group in groups for row in group]
    values = [random.Random(f"{seed}{row.id}").uniform(-4, 0) for row in rows]
    names = rows[0].scalars
    batch = make_batch(
        torch.ones(len(rows), 1).bool(),
        ref_logprobs=torch.zeros(len(rows), 1),
        **{name: [row.scalars[name] for row in rows] for name in names},
    )
    return batch, torch.tensor(values)[:, None]


def test_rpo_contrasts_within_its_sets_and_splitting_a_step_changes_nothing(
    make_batch, make_scored, samples
):
    method, groups = rpo_groups(make_scored, samples, 2)
    assert [len(group) for group in groups] == [4, 4, 2]  # rows of two, two and one pair
    whole, logprobs = as_batch(make_batch, groups, 1)
    totals = method.totals(whole)
    assert totals == {"contrasts": 4 + 4 + 1}
    weights = method._weights(whole)
    assert weights[:2, 2:].sum() == weights[2:4, 4:].sum() == weights[2:, :2].sum() == 0
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    loss, _ = method.loss("policy", Outputs(logprobs_BR=logprobs), whole, totals)
    parts = 0.0
    for group in groups:
        part, own = as_batch(make_batch, [group], 1)
        parts += float(method.loss("policy", Outputs(logprobs_BR=own), part, totals)[0])
    assert parts == pytest.approx(float(loss), rel=1e-5)


def test_rpo_with_sets_of_one_pair_is_dpo(make_batch, make_scored, samples):
    method, groups = rpo_groups(make_scored, samples, 1)
    batch, logprobs = as_batch(make_batch, groups, 2)
    rpo, _ = method.loss("policy", Outputs(logprobs_BR=logprobs), batch, method.totals(batch))
    dpo, _ = DPO(DPOConfig(beta=method.config.beta)).loss(
        "policy", Outputs(logprobs_BR=logprobs), batch, {"pairs": 5.0}
    )
    assert float(rpo) == pytest.approx(float(dpo))


def test_selm_takes_a_third_row_from_the_same_prompt(make_scored, samples):
    by_id = {sample.id: sample for sample in samples}
    a, b = samples[0].id, samples[1].id
    scored = [make_scored(f"{s}/{i}", s, float(i)) for s in (a, b) for i in range(4)]
    scored.append(make_scored(f"{a}/failed", a, None))
    method = SELM(SELMConfig(pairs=PairsConfig(max_pairs_per_prompt=1)))
    drawn = set()
    for seed in range(40):
        for group in method.select(scored, by_id, random.Random(seed)).groups:
            chosen, rejected, usual = (row.id for row in group)
            sample = chosen.rpartition("/")[0]
            assert (chosen, rejected) == (f"{sample}/3", f"{sample}/0")
            drawn.add(usual)
            assert usual.startswith(f"{sample}/")
    assert drawn == {f"{s}/{i}" for s in (a, b) for i in range(4)}


def test_selm_by_hand(make_batch):
    mask = torch.ones(3, 1).bool()
    ref = torch.tensor([[-1.0], [-1.0], [-2.0]])
    logprobs = torch.tensor([[0.0], [-2.0], [-1.5]], requires_grad=True)
    method = SELM(SELMConfig(beta=0.5, alpha=0.2))
    batch = make_batch(mask, ref_logprobs=ref, margin=[1.0] * 3)
    assert method.totals(batch) == {"pairs": 1.0}
    loss, metrics = method.loss("policy", Outputs(logprobs_BR=logprobs), batch, {"pairs": 2.0})
    # h = 1 - -1 = 2; the usual answer's log-ratio is 0.5
    assert loss.item() == pytest.approx((-log_sigmoid(1.0) + 0.2 * 0.5 * 0.5) / 2)
    assert metrics["selm/log_ratio"] == (0.5, 1.0)
    loss.backward()
    # a step down this gradient makes the usual answer less likely
    assert logprobs.grad[2].item() == pytest.approx(0.2 * 0.5 / 2)


def test_selm_without_optimism_is_dpo(make_batch):
    torch.manual_seed(0)
    values, ref = torch.randn(6, 2), torch.randn(6, 2)
    mask = torch.ones(6, 2).bool()
    three = make_batch(mask, ref_logprobs=ref, margin=[1.0] * 6)
    method = SELM(SELMConfig(alpha=0.0))
    selm, _ = method.loss("policy", Outputs(logprobs_BR=values), three, {"pairs": 2.0})
    keep = [0, 1, 3, 4]
    two = make_batch(mask[keep], ref_logprobs=ref[keep], margin=[1.0] * 4)
    dpo, _ = DPO(DPOConfig()).loss("policy", Outputs(logprobs_BR=values[keep]), two, {"pairs": 2.0})
    assert float(selm) == pytest.approx(float(dpo))
