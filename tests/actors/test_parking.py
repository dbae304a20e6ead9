"""Parked storages are empty, and come back to the bit, views and all."""

from __future__ import annotations

import pytest
import torch

from actors.parking import Parking


def test_views_of_a_parked_storage_come_back():
    flat = torch.arange(12.0)
    views = [flat[:4], flat[4:].view(2, 4)]
    before = [view.clone() for view in views]
    parking = Parking()
    assert parking.park([flat, *views]) == 48  # once, however many tensors share it
    assert parking.parked and parking.num_bytes == 48
    assert flat.untyped_storage().nbytes() == 0
    assert parking.wake() == 48
    assert not parking.parked and parking.num_bytes == 0
    assert all(torch.equal(a, b) for a, b in zip(views, before, strict=True))
    views[0][0] = 7.0
    assert flat[0] == 7.0


def test_parking_twice_and_waking_twice_move_nothing():
    tensor = torch.ones(3)
    parking = Parking()
    assert parking.wake() == 0
    parking.park([tensor])
    assert parking.park([tensor]) == 0
    parking.wake()
    assert parking.wake() == 0 and tensor.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool])
def test_any_dtype(dtype):
    tensor = torch.tensor([0, 1, 1]).to(dtype)
    before = tensor.clone()
    parking = Parking()
    parking.park([tensor])
    parking.wake()
    assert torch.equal(tensor, before)


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_trained_copy_goes_on_as_if_it_had_stayed(train_actor, tiny_model, store, samples, stage):
    from actors.train_spec import TrainSpec
    from trainers.batch import Row
    from trainers.config import SFTConfig
    from trainers.method import Optimisation
    from trainers.registry import make_method

    spec = TrainSpec(
        role="policy", model_dir=tiny_model, image_root=str(store.root), zero_stage=stage
    )
    groups = [(Row.of_response(sample, (9, 10, 1), sample.id),) for sample in samples[:4]]
    optimisation = Optimisation(learning_rate=1e-2, epochs=1, minibatch_size=4)
    losses = []
    for moved in (False, True):
        train_actor.load(spec)
        own = []
        for number in range(3):
            metrics = train_actor.train(groups, make_method(SFTConfig()), optimisation, seed=number)
            own.append(metrics["loss"])
            if moved:
                held = sum(train_actor.memory().values())
                assert train_actor.park() > 0.5 * held
                with pytest.raises(AssertionError, match="wake it first"):
                    train_actor.score_rows([groups[0][0]])
                assert train_actor.wake() > 0
        losses.append(own)
    assert losses[0] == losses[1]
    assert losses[0][2] < losses[0][0]
