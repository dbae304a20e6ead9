"""SFT: the mean negative log-likelihood of the chosen responses, and nothing of the rejected."""

from __future__ import annotations

import random

import pytest
import torch

from trainers.batch import Batch
from trainers.config import SFTConfig
from trainers.method import Outputs
from trainers.sft import SFT


def test_loss_is_the_mean_nll_over_tokens():
    empty = torch.zeros(0)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    batch = Batch(
        input_ids_BT=torch.zeros(2, 3, dtype=torch.long),
        attention_mask_BT=empty,
        positions_N3=empty,
        targets_N=empty,
        last_B=empty,
        mask_BR=mask,
        model_inputs={},
        tokens={},
        scalars={},
    )
    logprobs = torch.tensor([[-1.0, -2, -3], [-6, 99, 99]])
    method = SFT(SFTConfig())
    loss, _ = method.loss("policy", Outputs(logprobs_BR=logprobs), batch, method.totals(batch))
    # a mean over the 4 tokens, not of the rows' means (2 + 6) / 2
    assert float(loss) == pytest.approx(12 / 4)


def test_only_chosen_responses_are_rows(samples, make_scored):
    by_id = {sample.id: sample for sample in samples}
    scored = [
        make_scored("good", samples[0].id, 2.0, token_ids=(9, 9, 1)),
        make_scored("poor", samples[0].id, -2.0),
    ]
    selection = SFT(SFTConfig()).select(scored, by_id, random.Random(0))
    ((row,),) = selection.groups
    assert row.id == "good" and row.response_ids == (9, 9, 1)
