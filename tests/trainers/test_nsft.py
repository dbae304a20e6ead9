"""nSFT: the loss is two SFT losses, the corrective turns are balanced, failures are counted."""

from __future__ import annotations

import random

import pytest
import torch

from trainers.batch import Batch
from trainers.config import NSFTConfig
from trainers.data.records import Finding
from trainers.method import Outputs
from trainers.nsft import NSFT


def batch(mask, correction) -> Batch:
    empty = torch.zeros(0)
    return Batch(
        input_ids_BT=torch.zeros(mask.shape, dtype=torch.long),
        attention_mask_BT=empty,
        positions_N3=empty,
        targets_N=empty,
        last_B=empty,
        mask_BR=mask,
        model_inputs={},
        tokens={},
        scalars={"correction": torch.tensor(correction)},
    )


MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
LOGPROBS = torch.tensor([[-1.0, -2, -3], [-4, -1, 0], [-2, 0, 0], [-1, -1, -1]])
ROWS = batch(MASK, [0.0, 1.0, 0.0, 1.0])  # chosen, its turns, chosen, its turns

BAD = Finding(claim="red circle", verdict="bad")
MISSING = Finding(claim="green cross", verdict="missing")
OK = Finding(claim="blue cross", verdict="ok")


def test_loss_is_the_sum_of_two_independent_sft_losses():
    # methods.md: SFT on the chosen rows (8 over 4 tokens) plus SFT on the turns (8 over 5 tokens)
    method = NSFT(NSFTConfig())
    totals = method.totals(ROWS)
    assert totals == {"chosen": 4.0, "correction": 5.0}
    loss, metrics = method.loss("policy", Outputs(logprobs_BR=LOGPROBS), ROWS, totals)
    assert float(loss) == pytest.approx(8 / 4 + 8 / 5)
    assert metrics["nll/chosen"] == (8.0, 4.0)
    assert metrics["nll/correction"] == (8.0, 5.0)


def test_coefficients_weigh_the_terms():
    method = NSFT(NSFTConfig(chosen_coef=0.0, correction_coef=2.0))
    loss, _ = method.loss("policy", Outputs(logprobs_BR=LOGPROBS), ROWS, method.totals(ROWS))
    assert float(loss) == pytest.approx(2 * 8 / 5)


def test_a_step_without_corrections_is_plain_sft():
    only = batch(MASK[[0, 2]], [0.0, 0.0])
    method = NSFT(NSFTConfig())
    outputs = Outputs(logprobs_BR=LOGPROBS[[0, 2]])
    loss, metrics = method.loss("policy", outputs, only, method.totals(only))
    assert float(loss) == pytest.approx(8 / 4)
    assert metrics["nll/correction"] == (0.0, 0.0)


def test_padding_has_no_gradient():
    logprobs = LOGPROBS.clone().requires_grad_()
    method = NSFT(NSFTConfig())
    loss, _ = method.loss("policy", Outputs(logprobs_BR=logprobs), ROWS, method.totals(ROWS))
    loss.backward()
    assert (logprobs.grad[~MASK] == 0).all() and (logprobs.grad[MASK] < 0).all()


def select(samples, scored):
    by_id = {sample.id: sample for sample in samples}
    return NSFT(NSFTConfig()).select(scored, by_id, random.Random(0))


def test_each_pair_gives_the_chosen_row_and_its_balanced_turns(samples, make_scored):
    scored = [
        make_scored("good", samples[0].id, 2.0, token_ids=(9, 9, 1), findings=(OK,)),
        make_scored("poor", samples[0].id, -2.0, findings=(BAD, MISSING)),
    ]
    selection = select(samples, scored)
    ((chosen, turns),) = selection.groups
    assert chosen.id == "good" and chosen.response_ids == (9, 9, 1)
    assert chosen.scalars["correction"] == 0.0
    assert turns.id == "poor/correction" and turns.scalars["correction"] == 1.0
    assert turns.images == samples[0].images and turns.prompt == ()
    asked = {q.text: a.text for q, a in zip(turns.turns[::2], turns.turns[1::2], strict=True)}
    assert asked == {"is there a red circle ?": "no", "is there a green cross ?": "yes"}
    assert turns.turns[0].num_images == 1
    assert selection.stats["corrections"] == 1.0
    assert selection.stats["corrections_failed"] == 0.0


def test_targets_of_the_turns_are_their_answers(processing, samples, make_scored):
    scored = [
        make_scored("good", samples[0].id, 2.0),
        make_scored("poor", samples[0].id, -2.0, findings=(BAD, MISSING)),
    ]
    ((_, row),) = select(samples, scored).groups
    encoded = processing.encode(row.id, row.prompt, row.images, turns=row.turns)
    text = processing.tokenizer.decode(encoded.input_ids[encoded.target_mask])
    assert sorted(text.split()) == ["</s>", "</s>", "no", "yes"]


def test_a_rejected_answer_without_a_reason_is_counted(samples, make_scored):
    scored = [
        make_scored("good", samples[0].id, 2.0, findings=(OK,)),
        make_scored("poor", samples[0].id, -2.0),
    ]
    selection = select(samples, scored)
    assert [len(group) for group in selection.groups] == [1]
    assert selection.stats["corrections_failed"] == 1.0


def test_missing_alone_is_balanced_by_what_other_critiques_deny(samples, make_scored):
    # Nothing bad in the first sample's answer: the denial is a claim that was wrong elsewhere.
    scored = [
        make_scored("a", samples[0].id, 2.0),
        make_scored("b", samples[0].id, -2.0, findings=(MISSING,)),
        make_scored("c", samples[1].id, 0.0, findings=(BAD,)),
    ]
    ((_, row),) = select(samples, scored).groups
    answers = sorted(turn.text for turn in row.turns[1::2])
    assert answers == ["no", "yes"]
