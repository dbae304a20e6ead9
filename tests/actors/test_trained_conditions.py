"""What a trained policy says that it ran under is what its tensors and batches are."""

from __future__ import annotations

import math

import pytest

from actors import train
from trainers.batch import Row, encode_row
from trainers.conditions import LogprobPath, MicroBatch, Precision, Shards
from trainers.config import SFTConfig
from trainers.method import Optimisation
from trainers.registry import make_method

pytestmark = pytest.mark.deepspeed


def trained(actor, tiny_model, store, rows, **options):
    """Conditions of a policy after one pass over `rows`, in steps of six."""
    from actors.train_spec import TrainSpec

    actor.load(
        TrainSpec(role="policy", model_dir=tiny_model, image_root=str(store.root), **options)
    )
    before = actor.conditions()
    assert before.micro_batch is None and before.precision.optimizer is None
    step = Optimisation(learning_rate=1e-4, epochs=1, minibatch_size=6)
    actor.train([(row,) for row in rows], make_method(SFTConfig()), step, seed=0)
    return actor.conditions()


@pytest.fixture
def rows(samples):
    return [
        Row.of_response(sample, (*range(8, 8 + length), 1), sample.id)
        for sample, length in zip(samples[:8], (2, 3, 4, 5, 6, 7, 8, 30), strict=True)
    ]


def test_the_largest_micro_batch_is_the_one_that_was_forwarded(
    train_actor, tiny_model, store, rows, monkeypatch
):
    shapes = []
    original = train_actor._track

    def tracked(phase, batch, shape):
        shapes.append(tuple(batch.input_ids_BT.shape))
        assert shape == shapes[-1]
        return original(phase, batch, shape)

    monkeypatch.setattr(train_actor, "_track", tracked)
    found = trained(train_actor, tiny_model, store, rows, micro_batch_size=4).micro_batch
    # Eight rows in steps of six are micro-batches of 4, 2 and 2; one holds the longest row.
    assert [rows for rows, _ in shapes] == [4, 2, 2]
    largest = max(shapes, key=math.prod)
    assert (found.rows, found.length) == largest
    assert found == MicroBatch(
        tokens=math.prod(largest), rows=largest[0], length=largest[1], most_rows=4
    )
    longest = max(len(encode_row(row, train_actor.processing).input_ids) for row in rows)
    assert max(length for _, length in shapes) == longest


@pytest.mark.parametrize("packing", [False, True])
def test_a_micro_batch_is_measured_once(train_actor, tiny_model, store, rows, monkeypatch, packing):
    measured = []
    original = train.forward_shape
    monkeypatch.setattr(
        train, "forward_shape", lambda vlm, batch: measured.append(batch) or original(vlm, batch)
    )
    trained(train_actor, tiny_model, store, rows, micro_batch_size=4, packing=packing)
    assert len(measured) == 3  # micro-batches, as above; packed, each measure is a wait
    train_actor.score_rows(rows, batch_size=4)
    assert len(measured) == 5


def test_precision_is_that_of_the_tensors(train_actor, tiny_model, store, rows):
    plain = trained(train_actor, tiny_model, store, rows)
    assert plain.precision == Precision(weights="float32", masters="float32", optimizer="float32")
    assert plain.shards == Shards(ranks=1, zero_stage=0)
    assert plain.logprob_path == LogprobPath(chunk=512, gradient_checkpointing=False)
    half = trained(
        train_actor,
        tiny_model,
        store,
        rows,
        bf16=True,
        zero_stage=2,
        chunk_size=16,
        gradient_checkpointing=True,
    )
    assert half.precision == Precision(weights="bfloat16", masters="float32", optimizer="float32")
    assert half.shards == Shards(ranks=1, zero_stage=2)
    assert half.logprob_path == LogprobPath(chunk=16, gradient_checkpointing=True)
    assert half.micro_batch == plain.micro_batch
