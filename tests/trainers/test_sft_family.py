"""The SFT family: which responses are imitated, under which prompt, and how much."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.config import RejectionConfig, RewardWeightedConfig, SFTConfig, SteerLMConfig
from trainers.data.errors import UserError
from trainers.data.records import Turn
from trainers.method import Outputs
from trainers.rejection import Rejection
from trainers.reward_weighted import RewardWeighted, softmax_weights
from trainers.score_scale import ScoreScale
from trainers.sft import SFT
from trainers.steerlm import SteerLM

fast = settings(max_examples=30, deadline=None)


@pytest.fixture
def judged(samples, make_scored):
    """Samples by id, and: a 3 > 1 > failure, and a cut-off 9; b 2 twice; c only cut off."""
    a, b, c = (sample.id for sample in samples[:3])
    scored = [
        make_scored("a0", a, 1.0),
        make_scored("a1", a, 3.0),
        make_scored("a2", a, None),
        make_scored("a3", a, 9.0, finish_reason="length"),
        make_scored("b0", b, 2.0),
        make_scored("b1", b, 2.0),
        make_scored("c0", c, 5.0, finish_reason="length"),
    ]
    return {sample.id: sample for sample in samples}, scored


def ids(selection) -> list[str]:
    return [row.id for group in selection.groups for row in group]


def test_rejection_takes_the_best_finished_response_of_every_prompt(judged):
    by_id, scored = judged
    method = Rejection(RejectionConfig())
    drawn = {tuple(ids(method.select(scored, by_id, random.Random(i)))) for i in range(20)}
    assert drawn == {("a1", "b0"), ("a1", "b1")}  # chance decides between equals
    stats = method.select(scored, by_id, random.Random(0)).stats
    assert stats["responses/failures"] == 1 and stats["responses/truncated"] == 2
    assert stats["rejection/score"] == 2.5


def test_rejection_with_a_least_score(judged):
    by_id, scored = judged
    selection = Rejection(RejectionConfig(min_score=2.5)).select(scored, by_id, random.Random(0))
    assert ids(selection) == ["a1"] and selection.stats["rejection/below_min_score"] == 1
    none = Rejection(RejectionConfig(min_score=99.0)).select(scored, by_id, random.Random(0))
    assert none.groups == [] and "method.min_score=99" in none.why_empty


def test_weights_by_hand():
    # exp(0), exp(-1 / 0.5) for a difference of 1
    assert softmax_weights([3.0, 2.0], 0.5) == pytest.approx(
        [1 / (1 + math.exp(-2)), math.exp(-2) / (1 + math.exp(-2))]
    )
    assert softmax_weights([3.0, 2.0, 1.0], 1e-3) == pytest.approx([1, 0, 0])
    assert softmax_weights([3.0, 2.0, 1.0], 1e9) == pytest.approx([1 / 3] * 3)


@fast
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8), st.floats(0.01, 100))
def test_weights_add_up_to_one_and_do_not_depend_on_the_origin(scores, temperature):
    weights = softmax_weights(scores, temperature)
    assert sum(weights) == pytest.approx(1.0)
    assert all(weight >= 0 for weight in weights)
    shifted = softmax_weights([score + 7 for score in scores], temperature)
    assert shifted == pytest.approx(weights, abs=1e-6)


def test_reward_weighted_rows_carry_their_share_of_the_prompt(judged):
    by_id, scored = judged
    method = RewardWeighted(RewardWeightedConfig(weight_temperature=0.5))
    selection = method.select(scored, by_id, random.Random(0))
    weights = {row.id: row.scalars["weight"] for (row,) in selection.groups}
    std = torch.tensor([1.0, 3, 9, 2, 2, 5]).double().std(correction=0).item()
    good = 1 / (1 + math.exp(-2 / std / 0.5))
    assert weights == pytest.approx({"a0": 1 - good, "a1": good, "b0": 0.5, "b1": 0.5}, rel=1e-4)
    effective = (1 / (good**2 + (1 - good) ** 2) + 2) / 2
    assert selection.stats["weights/effective_responses"] == pytest.approx(effective, rel=1e-4)


def test_reward_weighted_loss_by_hand_and_in_halves(make_batch):
    mask = torch.tensor([[True, True], [True, False]])
    logprobs = torch.tensor([[-1.0, -2.0], [-5.0, 99.0]])
    method = RewardWeighted(RewardWeightedConfig())
    batch = make_batch(mask, weight=[0.75, 0.25])
    totals = method.totals(batch)
    assert totals == {"weighted_tokens": 0.75 * 2 + 0.25}
    loss, _ = method.loss("policy", Outputs(logprobs_BR=logprobs), batch, totals)
    assert loss.item() == pytest.approx((0.75 * 3 + 0.25 * 5) / 1.75)
    halves = sum(
        method.loss(
            "policy", Outputs(logprobs_BR=logprobs[[i]]), make_batch(mask[[i]], weight=[w]), totals
        )[0].item()
        for i, w in enumerate((0.75, 0.25))
    )
    assert halves == pytest.approx(loss.item())


def test_a_weight_on_one_response_is_sft_on_it(make_batch):
    mask = torch.tensor([[True, True], [True, False]])
    logprobs = torch.tensor([[-1.0, -2.0], [-5.0, 0.0]])
    method, sft = RewardWeighted(RewardWeightedConfig()), SFT(SFTConfig())
    one = make_batch(mask, weight=[1.0, 0.0])
    alone = make_batch(mask[:1])
    weighted, _ = method.loss("policy", Outputs(logprobs_BR=logprobs), one, method.totals(one))
    outputs = Outputs(logprobs_BR=logprobs[:1])
    expected, _ = sft.loss("policy", outputs, alone, sft.totals(alone))
    assert float(weighted) == pytest.approx(float(expected))


def test_the_score_scale_is_that_of_the_first_round():
    scale = ScoreScale(limit=2.0)
    assert scale.standardise([1.0]) == [1.0]  # one score has no spread
    assert scale.standardise([2.0, 6.0]) == pytest.approx([-1.0, 1.0], abs=1e-5)
    assert scale.standardise([6.0, 8.0, 100.0]) == pytest.approx([1.0, 2.0, 2.0], abs=1e-5)


def test_steerlm_tells_every_response_its_level(samples, make_scored):
    by_id = {sample.id: sample for sample in samples}
    id = samples[0].id
    scored = [make_scored(f"r{i}", id, float(i)) for i in range(10)]
    method = SteerLM(SteerLMConfig())
    assert method.ask(samples[0]) is samples[0]  # before the first round the words mean nothing
    selection = method.select(scored, by_id, random.Random(0))
    told = [row.prompt[-1].text.rpartition(" answer ")[2] for (row,) in selection.groups]
    # five levels over 0..9: boundaries 1.8, 3.6, 5.4, 7.2
    assert told == ["zero"] * 2 + ["one"] * 2 + ["two"] * 2 + ["three"] * 2 + ["four"] * 2
    assert selection.stats["steerlm/share_best"] == 0.2
    asked = method.ask(samples[0])
    assert asked.prompt[-1].text == samples[0].prompt[-1].text + " answer four"
    assert asked.prompt[-1].num_images == 1 and asked.images == samples[0].images
    # the boundaries stay: a later round of good responses is not spread over all levels
    late = method.select([make_scored("x", id, 8.0)], by_id, random.Random(0))
    assert late.groups[0][0].prompt[-1].text.endswith("answer four")


@fast
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_the_best_score_always_has_the_best_level(scores):
    method = SteerLM(SteerLMConfig(levels=("no", "yes")))
    method.boundaries = {"score": [float(np.quantile(scores, 0.5))]}
    assert method._level("score", float(max(scores))) == 1


def test_steerlm_with_the_judges_components(samples, make_scored):
    by_id = {samples[0].id: samples[0]}
    items = [
        replace(make_scored(f"r{i}", samples[0].id, 0.0), components={"right": i, "clear": -i})
        for i in range(2)
    ]
    config = SteerLMConfig(attributes={"right": "ok", "clear": "see"}, levels=("no", "yes"))
    method = SteerLM(config)
    selection = method.select(items, by_id, random.Random(0))
    ends = [row.prompt[-1].text.split()[-4:] for (row,) in selection.groups]
    assert ends == [["ok", "no", "see", "yes"], ["ok", "yes", "see", "no"]]
    assert method.ask(samples[0]).prompt[-1].text.endswith("ok yes see yes")
    with pytest.raises(UserError, match=r"no component 'kind'.*it has: score, right, clear"):
        SteerLM(SteerLMConfig(attributes={"kind": "ok"})).select(items, by_id, random.Random(0))


def test_the_built_in_tokenizer_has_steerlms_words(processing, samples):
    asked = SteerLMConfig()
    words = [*asked.attributes.values(), *asked.levels]
    unknown = processing.tokenizer.unk_token_id
    assert unknown not in processing.tokenizer(" ".join(words)).input_ids


def test_sft_on_the_datas_own_answers(samples, make_scored, processing):
    from trainers.batch import encode_row

    first = replace(samples[0], chosen="top-left red circle .")
    by_id = {first.id: first, samples[1].id: samples[1]}
    method = SFT(SFTConfig(target="data"))
    selection = method.select([make_scored("x", first.id, None)], by_id, random.Random(0))
    ((row,),) = selection.groups
    assert row.turns == (Turn(role="assistant", text="top-left red circle ."),)
    assert selection.stats == {"data/answers": 1.0, "data/no_answer": 1.0}
    encoded = encode_row(row, processing)
    target = processing.tokenizer.decode(encoded.input_ids[encoded.target_mask])
    assert target.strip() == "top-left red circle . </s>"


def test_sft_on_data_without_answers_is_refused(samples):
    by_id = {sample.id: sample for sample in samples}
    with pytest.raises(UserError, match="column chosen"):
        SFT(SFTConfig(target="data")).select([], by_id, random.Random(0))
