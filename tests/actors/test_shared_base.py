"""A critic that is adapters and a head on the policy's frozen base, in one process."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from actors.lora import adapters, add_adapters, twin
from trainers.batch import Row
from trainers.config import PPOConfig, SFTConfig
from trainers.method import Optimisation
from trainers.registry import make_method

RESPONSES = ((7, 8, 1), (9, 1), (10, 11, 12, 1), (13, 14, 1))
BASE_PATH = "model.language_model.layers.0.self_attn.q_proj"


@pytest.fixture
def specs(tiny_model, store):
    from actors.train_spec import TrainSpec

    def make(role: str, **options):
        settings = {"lora_rank": 4, "micro_batch_size": 2, **options}
        return TrainSpec(role=role, model_dir=tiny_model, image_root=str(store.root), **settings)

    return make


@pytest.fixture
def groups(samples):
    """Rows with everything that PPO's two losses ask for."""
    rows = [
        Row.of_response(sample, response, sample.id, score=1.0)
        for sample, response in zip(samples, RESPONSES, strict=False)
    ]
    for number, row in enumerate(rows):
        length = len(row.response_ids)
        row.tokens |= {
            "old_logprobs": np.full(length, -2.0, np.float32),
            "advantages": np.linspace(-1, 1, length, dtype=np.float32),
            "old_values": np.zeros(length, np.float32),
            "returns": np.full(length, 0.5 + number, np.float32),
        }
    return [(row,) for row in rows]


def optimisation() -> Optimisation:
    return Optimisation(learning_rate=1e-2, epochs=3, minibatch_size=2)


def test_a_twin_is_the_same_tensors_in_other_modules(tiny_model):
    from actors.modules import load_vlm

    vlm = load_vlm(tiny_model)
    plain = copy.deepcopy(vlm)
    add_adapters(vlm, rank=2, seed=0)
    other = twin(vlm)
    assert not adapters(other) and len(adapters(vlm)) == 3 * 7
    layer = vlm.get_submodule(BASE_PATH).base_layer
    assert other.get_submodule(BASE_PATH).weight is layer.weight
    assert other.get_submodule(BASE_PATH) is not layer
    assert [n for n, _ in other.named_parameters()] == [n for n, _ in plain.named_parameters()]
    addresses = {tensor.data_ptr() for tensor in (*vlm.parameters(), *vlm.buffers())}
    assert all(t.data_ptr() in addresses for t in (*other.parameters(), *other.buffers()))
    add_adapters(other, rank=3, seed=1)
    assert adapters(vlm)["model.language_model.layers.0.mlp.up_proj"].lora_A.out_features == 2


@pytest.mark.deepspeed
@pytest.mark.parametrize(("stage", "bf16"), [(0, False), (2, False), (2, True)])
def test_it_computes_what_a_critic_of_its_own_computes(train_actor, specs, groups, stage, bf16):
    rows = [row for (row,) in groups]
    method = make_method(PPOConfig())
    train_actor.load(specs("critic", zero_stage=stage, bf16=bf16))
    alone = train_actor.train(groups, method, optimisation(), seed=0)
    values = train_actor.score_rows(rows)

    train_actor.load(specs("policy", zero_stage=stage, bf16=bf16))
    before = train_actor.score_rows(rows)
    train_actor.load_tenant(specs("critic", zero_stage=stage, bf16=bf16))
    shared = train_actor.tenant("train", groups, method, optimisation(), seed=0)
    assert shared["loss"] == alone["loss"]
    for one, other in zip(values, train_actor.tenant("score_rows", rows), strict=True):
        assert np.abs(one).max() > 0.01
        np.testing.assert_array_equal(one, other)
    # The critic has learned, and the policy has not noticed.
    for one, other in zip(before, train_actor.score_rows(rows), strict=True):
        np.testing.assert_array_equal(one, other)
    # Nor does the critic notice the policy.
    train_actor.train(groups, make_method(SFTConfig()), optimisation(), seed=0)
    assert np.abs(np.concatenate(before) - np.concatenate(train_actor.score_rows(rows))).max() > 0.1
    for one, other in zip(values, train_actor.tenant("score_rows", rows), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", [0, 2])
def test_the_base_is_counted_once(train_actor, specs, groups, stage):
    from actors.memory import engine_tensors, storages

    train_actor.load(specs("critic", zero_stage=stage))
    train_actor.train(groups, make_method(PPOConfig()), optimisation(), seed=0)
    own = train_actor.memory()
    train_actor.load(specs("policy", zero_stage=stage))
    train_actor.load_tenant(specs("critic", zero_stage=stage))
    train_actor.end_phase("sync")
    train_actor.train(groups, make_method(SFTConfig()), optimisation(), seed=0)
    train_actor.tenant("train", groups, make_method(PPOConfig()), optimisation(), seed=0)
    policy, critic = train_actor.memory(), train_actor.tenant("memory")
    assert "shared_weights" not in critic
    # A critic of its own has a base; this one has adapters, a head, and all the rest alike.
    assert policy["shared_weights"] + critic["weights"] == own["weights"]
    assert critic["weights"] < 0.1 * own["weights"]
    for kind in ("gradients", "optimizer"):
        assert critic[kind] == own[kind]
    # Nothing is left out and nothing counted twice.
    engines = train_actor._engine, train_actor._tenant._engine
    everything = storages(
        t for engine in engines for tensors in engine_tensors(engine).values() for t in tensors
    )
    rows = train_actor._bytes_by_place()[0] | train_actor._tenant._bytes_by_place()[0]
    assert sum(sum(kinds.values()) for kinds in rows.values()) == sum(everything.values())
    # One process, one peak: at the critic's, if it adds more, the policy only waits.
    reading = train_actor.end_phase("train")
    assert set(reading.copies) == {"policy", "critic", "process"}
    working = [role for role in ("policy", "critic") if "activations" in reading.copies[role]]
    assert len(working) == 1
    assert "borrowed_weights" not in reading.copies["critic"]
    assert reading.copies["policy"]["shared_weights"] == policy["shared_weights"]


@pytest.mark.deepspeed
def test_what_a_base_was_counted_as_before_is_forgotten(train_actor, specs):
    train_actor.load(specs("policy"))
    alone = train_actor.end_phase("load").copies["policy"]
    train_actor.load_tenant(specs("critic"))
    both = train_actor.end_phase("load").copies["policy"]
    assert "shared_weights" not in alone
    assert both["shared_weights"] + both["weights"] == alone["weights"]


@pytest.mark.deepspeed
def test_it_goes_with_the_copy_that_it_lives_on(train_actor, specs):
    train_actor.load(specs("policy"))
    train_actor.load_tenant(specs("critic"))
    train_actor.load(specs("policy"))
    assert "shared_weights" not in train_actor.memory()
    with pytest.raises(AssertionError, match="load_tenant first"):
        train_actor.tenant("memory")
    train_actor.load(specs("policy", lora_rank=0))
    with pytest.raises(AssertionError, match="adapters first"):
        train_actor.load_tenant(specs("critic"))


@pytest.mark.deepspeed
@pytest.mark.parametrize(("stage", "bf16"), [(0, False), (2, True)])
def test_it_holds_what_the_planner_says(train_actor, specs, groups, tiny_model, stage, bf16):
    from cluster.planner.architectures import load_architecture
    from cluster.planner.copy_plan import CopyPlanner
    from cluster.planner.settings import Settings

    train_actor.load(specs("policy", zero_stage=stage, bf16=bf16))
    train_actor.load_tenant(specs("critic", zero_stage=stage, bf16=bf16))
    train_actor.tenant("train", groups, make_method(PPOConfig()), optimisation(), seed=0)
    measured = train_actor.tenant("memory")
    settings = Settings(zero_stage=stage, bf16=bf16, lora_rank=4, critic="shared_base")
    planned = CopyPlanner(load_architecture(tiny_model)).trained("critic", settings, 1).device
    measured.pop("gradients")
    assert measured == planned
