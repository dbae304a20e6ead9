"""Adapters, and a reference without a copy of its own, on the real stack."""

from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cluster.config import RunConfig
from cluster.config_text import validate

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]

ROUNDS = 2
ADAPTER_BYTES = 4 * 4 * 3 * (4 * (128 + 128) + 3 * (128 + 256))
"""float32, rank 4, 3 layers: q, k, v, o of 128 -> 128, three of the MLP between 128 and 256."""


def train(stack, model: str, method: dict[str, Any], **settings: Any):
    """A short run; its result and its folder."""
    from cluster import run
    from trainers.comparison import load

    output = Path(mkdtemp(dir=stack.root))
    values = {
        "output": str(output),
        "rounds": ROUNDS,
        "model": model,
        "judge": "tests.e2e.judge_functions:length",
        "judge_check": {"min_accuracy": 0.0},
        "method": method,
        "rollout": {"num_prompts": 6, "num_rollouts_per_prompt": 4, "max_tokens": 24},
        "train": {"parity_rollouts": 6, **settings},
        "eval": {"num_scenes": 2, "num_curve_scenes": 0},
        "num_threads": 1,
    }
    assert run.train(validate(RunConfig, values)) == 0
    (folder,) = output.iterdir()
    result = load(folder / "compare.json").methods[method["name"]]
    assert result.failure is None
    # The engine answers with merged weights as the trainer does with the adapters beside the base.
    assert all(point.parity < 1e-5 for point in result.curve if point.round)
    return result, folder


PPO = {"name": "ppo", "minibatch_size": 8, "learning_rate": 1e-2}
DPO = {"name": "dpo", "minibatch_size": 8, "learning_rate": 1e-3, "pairs": {"margin": 0.0}}


@pytest.mark.slow
def test_ppo_on_adapters_is_its_own_reference(stack, tiny_model):
    result, folder = train(stack, tiny_model, PPO, lora_rank=4, reference="adapter_off")
    first, second = (point for point in result.curve if point.round)
    assert first.kl == 0  # adapters that add nothing yet, to the bit
    assert abs(second.kl) > 1e-4
    for point in (first, second):
        assert point.extra["first/policy/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert result.copies_train == ["policy", "critic", "reference", "reward"]
    assert "reference" not in result.bytes_by_copy
    assert result.bytes_by_copy["policy"]["gradients"] == ADAPTER_BYTES
    assert result.bytes_by_copy["critic"]["gradients"] == ADAPTER_BYTES + 4 * 128  # and its head
    # What is saved is a plain model: only the language model's matrices have moved.
    base = load_file(f"{tiny_model}/model.safetensors")
    final = load_file(folder / "final" / "model.safetensors")
    assert base.keys() == final.keys()
    moved = {name for name, tensor in base.items() if not torch.equal(tensor, final[name])}
    assert len(moved) == 3 * 7 and all("_proj.weight" in name for name in moved)
    assert not any("vision" in name for name in moved)


def test_all_of_ppos_models_but_the_reward_on_one_base(stack, tiny_model):
    from trainers.ledger import read_rows

    result, folder = train(
        stack, tiny_model, PPO, lora_rank=4, reference="adapter_off", critic="shared_base"
    )
    first, second = (point for point in result.curve if point.round)
    assert first.kl == 0 and abs(second.kl) > 1e-4
    assert first.extra["first/policy/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert second.extra["critic/steps"] >= 1
    held = result.bytes_by_copy
    assert held["critic"]["weights"] == ADAPTER_BYTES + 4 * 128  # and its head
    assert held["critic"]["gradients"] == held["critic"]["weights"]
    assert held["policy"]["shared_weights"] > 10 * held["policy"]["weights"]
    rows = [row for row in read_rows(folder / "memory" / "ledger.jsonl") if row.place == "device"]
    # Both are of the policy's process; each base weight is there once.
    assert {row.process for row in rows if row.copy == "critic"} == {"policy/0"}
    assert {row.copy for row in rows if row.kind == "shared_weights"} == {"policy"}


@pytest.mark.parametrize("rank", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_dpo_needs_no_second_copy(stack, tiny_model, rank):
    result, _ = train(stack, tiny_model, DPO, lora_rank=rank, reference="cached")
    for point in (point for point in result.curve if point.round):
        # In every round the reference is the policy that the round starts with: ln 2.
        assert point.extra["first/loss"] == pytest.approx(0.693147, abs=1e-5)
        assert point.extra["steps"] >= 1
    assert result.copies_train == ["policy", "reference"]
    assert "reference" not in result.bytes_by_copy
    assert "refresh" not in result.seconds_by_phase


@pytest.mark.slow
def test_a_reference_on_the_host_changes_memory_and_nothing_else(stack, tiny_model):
    from trainers.ledger import copies_at, read_rows

    own, folder = train(stack, tiny_model, DPO, reference="own_copy")
    away, other = train(stack, tiny_model, DPO, reference="on_host")
    for one, two in zip(own.curve, away.curve, strict=True):
        assert (one.loss, one.score) == (two.loss, two.score)
    before, after = (read_rows(run / "memory" / "ledger.jsonl") for run in (folder, other))
    weights = copies_at(before, "train", "device")["reference"]["weights"]
    assert "reference" not in copies_at(after, "train", "device")
    assert copies_at(after, "train", "host")["reference"]["weights"] == weights
    assert away.memory.moved_bytes > 0 == own.memory.moved_bytes
    assert "reference" in away.bytes_by_copy


@pytest.mark.slow
def test_an_engine_that_serves_the_adapter_answers_as_a_merged_one(stack, tiny_model):
    adapted = {"lora_rank": 4, "reference": "cached"}
    merged, _ = train(stack, tiny_model, DPO, **adapted)
    served, folder = train(stack, tiny_model, DPO, **adapted, lora_sync="adapter")
    for one, other in zip(merged.curve, served.curve, strict=True):
        assert other.loss == pytest.approx(one.loss, abs=1e-4)
        assert other.score == pytest.approx(one.score, abs=1e-4)
    engines = [result.bytes_by_copy["rollout_engine"]["weights"] for result in (merged, served)]
    assert engines[1] - engines[0] == 2 * ADAPTER_BYTES  # vLLM has room for rank 8, not 4
    # What is saved is merged all the same.
    base = load_file(f"{tiny_model}/model.safetensors")
    final = load_file(folder / "final" / "model.safetensors")
    assert base.keys() == final.keys()


@pytest.mark.slow
def test_a_passing_reference_gives_what_a_resident_one_gives(stack, tiny_model):
    resident, _ = train(stack, tiny_model, PPO, reference="own_copy")
    passing, _ = train(stack, tiny_model, PPO, reference="cached")
    assert set(resident.bytes_by_copy["reference"]) == {"weights"}
    assert "reference" not in passing.bytes_by_copy
    # Same seed, same answers in the first round, and a base that does not move in the second.
    for mode in (resident, passing):
        first, second = (point for point in mode.curve if point.round)
        assert abs(first.kl) < 1e-4 < abs(second.kl)


@pytest.mark.slow
def test_taking_turns_changes_memory_and_nothing_else(stack, tiny_model):
    from trainers.ledger import binding_phase, phase_bytes, read_rows

    results, ledgers = [], []
    for time_slice in (False, True):
        result, folder = train(
            stack, tiny_model, PPO, reference="own_copy", lora_rank=0, time_slice=time_slice
        )
        results.append(result)
        ledgers.append(read_rows(folder / "memory" / "ledger.jsonl"))
    together, in_turns = results
    for one, other in zip(together.curve, in_turns.curve, strict=True):
        assert (one.loss, one.kl, one.score) == (other.loss, other.kl, other.score)
    # Two of PPO's own copies are trained and a third is there; in turns it is one at a time.
    own = [[row for row in rows if row.copy in together.copies_train] for rows in ledgers]
    before, after = (phase_bytes(rows)["train"] for rows in own)
    # At the least the critic's weights and states and the reference's weights are away.
    away = together.bytes_by_copy
    assert before - after > sum(
        away[copy][kind]
        for copy, kind in (
            ("critic", "weights"),
            ("critic", "optimizer"),
            ("reference", "weights"),
        )
    )
    assert in_turns.memory.moved_bytes > 0 == together.memory.moved_bytes
    assert in_turns.memory.binding_phase == binding_phase(ledgers[1])
    assert phase_bytes(ledgers[1], "host")["train"] > 0
    for result, rows in zip(results, ledgers, strict=True):
        phases = {row.phase for row in rows}
        assert phases == {"generate", "judge", "logprobs", "train", "sync"}
        assert result.memory.object_store_bytes > 0
        assert {"policy", "critic", "reference", "rollout_engine"} <= {row.copy for row in rows}
