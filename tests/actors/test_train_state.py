"""The trained state: a copy that goes on from its files takes the same steps, to the bit."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import ray
import torch

from trainers.batch import Row
from trainers.config import DPOConfig
from trainers.data.errors import UserError
from trainers.method import Optimisation
from trainers.registry import make_method

pytestmark = pytest.mark.deepspeed
OPTIMISATION = Optimisation(learning_rate=1e-3, epochs=1, minibatch_size=3, warmup_steps=4)


@pytest.fixture
def spec(tiny_model, store):
    from actors.train_spec import TrainSpec

    def make(**options) -> TrainSpec:
        return TrainSpec(role="policy", model_dir=tiny_model, image_root=str(store.root), **options)

    return make


def pairs_of(samples, number: int):
    """Six pairs, other ones for each number."""
    chance, groups = random.Random(number), []
    for index, sample in enumerate(samples[:6]):
        rows = []
        for side in range(2):
            ids = (*chance.choices(range(6, 40), k=chance.randint(1, 8)), 1)
            row = Row.of_response(sample, ids, f"{number}/{index}/{side}", margin=1.0)
            row.tokens["ref_logprobs"] = np.full(len(ids), -2.0, np.float32)
            rows.append(row)
        groups.append(tuple(rows))
    return groups


def rounds(actor, samples, *numbers: int) -> None:
    for number in numbers:
        actor.train(pairs_of(samples, number), make_method(DPOConfig()), OPTIMISATION, seed=number)


def trained(actor) -> dict[str, torch.Tensor]:
    """Masters and optimiser states by name."""
    from actors.train_state import trained_state

    return {name: tensor.clone() for name, tensor in trained_state(actor._engine)}


def weights(actor) -> dict[str, torch.Tensor]:
    from actors.weight_sync import open_bucket

    return dict(pair for bucket in actor.weight_buckets(2**30) for pair in open_bucket(bucket))


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """As bytes, since 0.0 and -0.0 are equal numbers."""
    return {n: t.contiguous().view(torch.uint8).numpy().tobytes() for n, t in tensors.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bf16": True},
        {"zero_stage": 2},
        {"zero_stage": 3, "bf16": True},
        {"lora_rank": 4, "zero_stage": 1, "offload_optimizer": "cpu"},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()) or "plain",
)
def test_a_resumed_copy_takes_the_same_steps(train_actor, spec, samples, tmp_path, options):
    actor = train_actor
    actor.load(spec(**options))
    rounds(actor, samples, 1)
    actor.save_state(str(tmp_path))
    rounds(actor, samples, 2)  # saving changed nothing: these are the uninterrupted steps
    expected, expected_weights = trained(actor), weights(actor)
    assert any(name.endswith("/exp_avg_sq") for name in expected)
    steps = {float(tensor) for name, tensor in expected.items() if name.endswith("/step")}
    assert min(steps) >= 4  # DeepSpeed's start counts as one in some of its optimisers

    actor.load(spec(**options))
    assert bits(trained(actor)) != bits(expected)
    actor.load_state(str(tmp_path))
    rounds(actor, samples, 2)
    assert bits(trained(actor)) == bits(expected)
    assert bits(weights(actor)) == bits(expected_weights)
    assert actor.steps == 4


def test_loaded_optimiser_states_are_in_the_ledger(train_actor, spec, samples, tmp_path):
    actor = train_actor
    actor.load(spec())
    rounds(actor, samples, 1)
    actor.save_state(str(tmp_path))
    held = actor.end_phase("train").copies["policy"]
    assert held["optimizer"]

    actor.load(spec())
    assert "optimizer" not in actor.end_phase("load").copies["policy"]  # and it was counted
    actor.load_state(str(tmp_path))
    found = actor.end_phase("load").copies["policy"]
    assert found["optimizer"] == held["optimizer"]


def test_another_zero_stage_goes_on_to_rounding(train_actor, spec, samples, tmp_path):
    actor = train_actor
    actor.load(spec(zero_stage=2))
    rounds(actor, samples, 1)
    actor.save_state(str(tmp_path))
    saved = trained(actor)
    actor.load(spec())
    actor.load_state(str(tmp_path))
    loaded = trained(actor)
    assert bits(loaded) == bits(saved)


def test_before_the_first_step_there_are_only_weights(train_actor, spec, samples, tmp_path):
    actor = train_actor
    actor.load(spec())
    actor.save_state(str(tmp_path))
    index = json.loads((tmp_path / "policy.json").read_text())["tensors"]
    assert {name.rpartition("/")[2] for name in index} == {"master"}
    rounds(actor, samples, 1)
    expected = trained(actor)
    actor.load(spec())
    actor.load_state(str(tmp_path))
    rounds(actor, samples, 1)
    assert bits(trained(actor)) == bits(expected)


def test_what_a_checkpoint_lacks_is_named(train_actor, spec, tmp_path):
    actor = train_actor
    actor.load(spec())
    actor.save_state(str(tmp_path))
    index, own = tmp_path / "policy.json", tmp_path / "policy.rank0.json"
    values = json.loads(index.read_text())
    name = next(iter(values["tensors"]))
    without = {n: file for n, file in values["tensors"].items() if n != name}
    index.write_text(json.dumps({"tensors": without}))
    with pytest.raises(UserError, match=name):
        actor.load_state(str(tmp_path))
    index.write_text(json.dumps({"tensors": values["tensors"] | {"lm_head.bias/master": "x"}}))
    with pytest.raises(UserError, match=r"lm_head\.bias is not in both"):
        actor.load_state(str(tmp_path))
    index.write_text(json.dumps(values))
    own.unlink()
    with pytest.raises(UserError, match=r"policy\.rank0\.json: the checkpoint lacks this file"):
        actor.load_state(str(tmp_path))
    (tmp_path / "policy-00001.safetensors").unlink()
    with pytest.raises(UserError, match=r"policy-00001\.safetensors: the checkpoint lacks"):
        actor.load_state(str(tmp_path))


def test_files_are_of_bounded_size(train_actor, spec, tmp_path, monkeypatch):
    monkeypatch.setattr("actors.state_files.SHARD_BYTES", 400_000)
    actor = train_actor
    actor.load(spec())
    actor.save_state(str(tmp_path))
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    before = trained(actor)
    actor.load(spec())
    actor.load_state(str(tmp_path))
    assert bits(trained(actor)) == bits(before)


@pytest.fixture(scope="module")
def sessions(shared_session):
    """Sessions of one and of two ranks."""
    from cluster.session import Session

    two = Session(num_threads=1, console=shared_session.console, num_ranks=2)
    yield {1: shared_session, 2: two}
    for session in (shared_session, two):
        session.unload("policy")


def train_ranks(session, spec, samples, folder, *, number: int, resumed: bool):
    """Rank 0's weights after round `number`, and the state saved after it in `folder`."""
    from actors.weight_sync import open_bucket

    session.load_trainer("policy", spec)
    group = session.trainer("policy")
    if resumed:
        ray.get(group.call("load_state", str(folder)))
    calls = group.call(
        "train",
        pairs_of(samples, number),
        make_method(DPOConfig()),
        OPTIMISATION,
        seed=number,
    )
    ray.get(calls)
    if not resumed:
        folder.mkdir()
        ray.get(group.call("save_state", str(folder)))
    buckets = ray.get(group.call("weight_buckets", 2**30)[0])
    return dict(pair for bucket in buckets for pair in open_bucket(bucket))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_another_number_of_ranks_goes_on_to_rounding(sessions, spec, samples, tmp_path, stage):
    folder = tmp_path / "state"
    train_ranks(sessions[2], spec(zero_stage=stage), samples, folder, number=1, resumed=False)
    two, again, one = (
        train_ranks(
            sessions[ranks], spec(zero_stage=stage), samples, folder, number=2, resumed=True
        )
        for ranks in (2, 2, 1)
    )
    assert bits(two) == bits(again)
    plain = train_ranks(sessions[1], spec(), samples, folder, number=2, resumed=True)
    for other in (one, plain):
        gaps = torch.cat([(other[n] - t).abs().flatten() for n, t in two.items()])
        # As in test_train_ranks: Adam makes rounding noise of the smallest gradients a few 1e-5.
        assert float((gaps > 1e-6).float().mean()) < 1e-2
        assert float(gaps.median()) < 1e-7
