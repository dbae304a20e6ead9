"""Rows to tensors: padding, targets and signals stay together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainers.batch import Row, collate, unpad


def rows_of(samples, lengths, **signals):
    return [
        Row.of_response(sample, tuple(range(10, 10 + length)), f"row-{index}", score=float(index))
        for index, (sample, length) in enumerate(zip(samples, lengths, strict=False))
    ]


def batch_of(processing, rows):
    encoded = [
        processing.encode(r.id, r.prompt, r.images, response_ids=r.response_ids, turns=r.turns)
        for r in rows
    ]
    return collate(rows, encoded, processing), encoded


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
def test_every_target_is_read_one_position_earlier(processing, samples, lengths):
    batch, encoded = batch_of(processing, rows_of(samples, lengths))
    assert batch.mask_BR.sum(1).tolist() == lengths
    at = 0
    for index, length in enumerate(lengths):
        size = len(encoded[index].input_ids)
        positions = [(index, size - length - 1 + step, step) for step in range(length)]
        assert [tuple(p) for p in batch.positions_N3[at : at + length].tolist()] == positions
        assert batch.targets_N[at : at + length].tolist() == list(range(10, 10 + length))
        assert int(batch.last_B[index]) == size - 1
        assert int(batch.attention_mask_BT[index].sum()) == size
        assert (batch.input_ids_BT[index, size:] == processing.pad_id).all()
        at += length
    assert len(batch.targets_N) == at


def test_a_longer_row_beside_it_changes_nothing_of_a_row(processing, samples):
    rows = rows_of(samples, (3, 9))
    alone, _ = batch_of(processing, rows[:1])
    both, _ = batch_of(processing, rows)
    size = alone.input_ids_BT.shape[1]
    assert torch.equal(both.input_ids_BT[:1, :size], alone.input_ids_BT)
    assert torch.equal(both.positions_N3[:3], alone.positions_N3)
    assert torch.equal(both.targets_N[:3], alone.targets_N)
    assert torch.equal(both.model_inputs["pixel_values"][:1], alone.model_inputs["pixel_values"])


def test_mask_comes_from_lengths_when_pad_is_eos(processing, samples, monkeypatch):
    # Many checkpoints pad with EOS; a mask made from ids would lose the EOS that is a target.
    monkeypatch.setattr(processing, "pad_id", processing.eos_id)
    rows = [
        Row.of_response(samples[0], (10, processing.eos_id), "a"),
        Row.of_response(samples[1], (10, 11, 12, 13, processing.eos_id), "b"),
    ]
    batch, encoded = batch_of(processing, rows)
    assert batch.mask_BR.sum(1).tolist() == [2, 5]
    assert batch.attention_mask_BT.sum(1).tolist() == [len(item.input_ids) for item in encoded]


def test_signals_are_padded_with_zeros_and_unpadded_again(processing, samples):
    rows = rows_of(samples, (2, 4))
    for row, length in zip(rows, (2, 4), strict=True):
        row.tokens["old_logprobs"] = np.arange(1, length + 1, dtype=np.float32)
    batch, _ = batch_of(processing, rows)
    assert batch.tokens["old_logprobs"].tolist() == [[1, 2, 0, 0], [1, 2, 3, 4]]
    assert batch.scalars["score"].tolist() == [0.0, 1.0]
    arrays = unpad(batch.tokens["old_logprobs"], batch.mask_BR)
    assert [array.tolist() for array in arrays] == [[1, 2], [1, 2, 3, 4]]


def test_another_number_of_values_than_targets_names_row_and_signal(processing, samples):
    rows = rows_of(samples, (2, 4))
    for row in rows:
        row.tokens["advantages"] = np.zeros(4, dtype=np.float32)
    with pytest.raises(ValueError, match="row row-0: 4 values of advantages for 2 target tokens"):
        batch_of(processing, rows)


def test_to_moves_every_tensor(processing, samples):
    rows = rows_of(samples, (2, 4))
    batch, _ = batch_of(processing, rows)
    moved = batch.to(torch.device("meta"))
    assert moved.input_ids_BT.is_meta and moved.model_inputs["pixel_values"].is_meta
    assert moved.scalars["score"].is_meta
    assert moved.num_rows == 2
