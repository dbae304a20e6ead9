"""Engines asleep: off the device, refused, and back to the digit."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import ray
import torch

from actors import engine_memory
from actors.engine_memory import EngineMemory, VllmMover, require_free
from actors.ledger import Reading
from trainers.data.errors import UserError

MIB, GIB = 2**20, 2**30
KV_CACHE_MIB = 64


@pytest.fixture(scope="module")
def sleeper(shared_session, tiny_model, store):
    """The rollout actor with an engine that starts asleep."""
    from actors.engine import EngineSpec

    spec = EngineSpec(
        model_dir=tiny_model,
        image_root=str(store.root),
        max_model_len=128,
        kv_cache_mib=KV_CACHE_MIB,
        sleep=True,
    )
    shared_session.load_rollout(spec)
    return shared_session.actor("rollout")


@pytest.fixture
def asleep(sleeper):
    yield sleeper
    ray.get(sleeper.sleep.remote())


def generate(actor, samples, number=2):
    rollouts, dropped = ray.get(
        actor.generate.remote(
            samples, num_rollouts_per_prompt=number, temperature=1.0, max_tokens=16, seed=3
        )
    )
    assert not dropped
    return rollouts


def held(actor) -> tuple[dict[str, int], dict[str, int], int]:
    """What the engine says is on the device and in host memory, and what torch's storages say."""

    def look(self: Any) -> tuple[dict[str, int], dict[str, int], int]:
        from actors.engine_memory import _kv_caches, _weights, storage_sum

        rpc = self.engine.llm.collective_rpc
        memory = self.engine.memory
        tensors = [*rpc(_weights)[0], *rpc(_kv_caches)[0]]
        return memory.on_device(), memory.in_host(), storage_sum(tensors)

    return ray.get(actor.__ray_call__.remote(look))


@pytest.mark.ray
@pytest.mark.vllm
def test_answers_are_equal_to_the_digit_after_a_sleep(asleep, samples):
    assert ray.get(asleep.wake_up.remote()) > 0
    before = generate(asleep, samples)
    for _ in range(2):
        away = ray.get(asleep.sleep.remote())
        assert away == ray.get(asleep.wake_up.remote()) > 0
        after = generate(asleep, samples)
        assert [r.token_ids for r in after] == [r.token_ids for r in before]
        assert [r.logprobs for r in after] == [r.logprobs for r in before]


@pytest.mark.ray
@pytest.mark.vllm
def test_asleep_the_device_holds_what_is_packed_and_nothing_else(asleep, samples):
    ray.get(asleep.wake_up.remote())
    assert "kv_cache" not in held(asleep)[0]  # staged: not before an answer is asked for
    generate(asleep, samples)
    awake, nothing, storages = held(asleep)
    assert nothing == {} and storages == awake["weights"] + awake["kv_cache"]
    assert 0.9 * KV_CACHE_MIB * MIB < awake["kv_cache"] <= KV_CACHE_MIB * MIB
    ray.get(asleep.sleep.remote())
    device, host, storages = held(asleep)
    assert storages == 0 and host == {"weights": awake["weights"]}
    assert device == {k: v for k, v in awake.items() if k == "packed_weights"}
    assert ray.get(asleep.sleep.remote()) == 0  # it sleeps already


@pytest.mark.ray
@pytest.mark.vllm
def test_an_engine_asleep_is_refused_work(asleep, samples):
    ray.get(asleep.sleep.remote())
    for call in (
        lambda: generate(asleep, samples),
        lambda: ray.get(asleep.update_weights.remote([])),
    ):
        with pytest.raises(AssertionError, match="asleep; wake it first"):
            call()


@pytest.mark.ray
@pytest.mark.vllm
def test_a_sync_right_after_the_wake_is_there_after_the_next_sleep(asleep, samples, tiny_model):
    from actors.modules import load_vlm
    from actors.weight_sync import checkpoint_tensors, make_buckets

    ray.get(asleep.wake_up.remote())
    before = generate(asleep, samples)
    ray.get(asleep.sleep.remote())
    vlm = load_vlm(tiny_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in vlm.parameters():
            parameter += 0.05 * torch.randn_like(parameter)

    def sync(model) -> None:
        ray.get(asleep.wake_up.remote())
        ray.get(asleep.update_weights.remote(make_buckets(checkpoint_tensors(model), 2**18)))

    sync(vlm)  # without a KV cache
    changed = generate(asleep, samples)
    assert [r.logprobs for r in changed] != [r.logprobs for r in before]
    ray.get(asleep.sleep.remote())
    ray.get(asleep.wake_up.remote())
    assert [r.logprobs for r in generate(asleep, samples)] == [r.logprobs for r in changed]
    ray.get(asleep.sleep.remote())
    sync(load_vlm(tiny_model))
    ray.get(asleep.sleep.remote())  # half awake
    ray.get(asleep.wake_up.remote())
    back = generate(asleep, samples)
    assert [r.logprobs for r in back] == [r.logprobs for r in before]


@pytest.mark.ray
@pytest.mark.vllm
def test_the_ledger_shows_the_engine_where_it_was(asleep, samples):
    def phase(name: str) -> Reading:
        return ray.get(asleep.end_phase.remote(name))

    phase("start")
    ray.get(asleep.wake_up.remote())
    generate(asleep, samples)
    ray.get(asleep.sleep.remote())
    worked, rested = phase("generate"), phase("train")
    assert {"weights", "kv_cache"} <= set(worked.copies["rollout_engine"])
    assert not {"weights", "kv_cache"} & set(rested.copies["rollout_engine"])
    parked = {"weights": worked.copies["rollout_engine"]["weights"]}
    assert rested.parked["rollout_engine"] == worked.parked["rollout_engine"] == parked
    assert not worked.alone
    # Half of the KV cache and more was touched, and is no longer the process's.
    assert sum_of(worked) - sum_of(rested) > KV_CACHE_MIB * MIB / 2


def sum_of(reading: Reading) -> int:
    return sum(sum(kinds.values()) for kinds in reading.copies.values()) + reading.runtime


def test_what_does_not_fit_says_what_is_needed_and_free():
    require_free("weights", 3 * GIB, 3 * GIB)
    with pytest.raises(UserError, match=r"rollout\.sleep: .* 3\.00 GiB .*\(kv cache\) and 1\.50"):
        require_free("kv_cache", 3 * GIB, 3 * GIB // 2)


class RecordingLLM:
    """vLLM's calls in order, for the path that needs a GPU: weights of 4 GiB, a cache of 2 GiB."""

    def __init__(self, workers: int = 1) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.llm_engine = self
        self.workers = workers

    def collective_rpc(self, function: Any) -> list[Any]:
        if function is engine_memory._free_bytes:
            return [function(None) for _ in range(self.workers)]
        held = {
            engine_memory._weight_bytes: (4 * GIB, 0),
            engine_memory._adapter_bytes: 0,
            engine_memory._kv_bytes: 2 * GIB,
        }
        return [held[function]] * self.workers

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake", *tags))

    def reset_prefix_cache(self) -> None:
        self.calls.append(("reset", "prefix"))

    def reset_mm_cache(self) -> None: ...

    def reset_encoder_cache(self) -> None: ...


def test_on_a_gpu_the_calls_are_staged_and_memory_is_looked_at_first(monkeypatch):
    free = [5 * GIB]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free[0], 80 * GIB))
    monkeypatch.setattr(VllmMover, "sleeps_in_parts", lambda self: True)
    llm = RecordingLLM()
    memory = EngineMemory(llm, 4 * GIB, on_gpu=True)
    both = {"weights": 4 * GIB, "kv_cache": 2 * GIB}
    assert memory.on_device() == both and memory.unmapped() == {}
    assert memory.sleep() == 4 * GIB
    assert llm.calls == [("reset", "prefix"), ("sleep", 1)]
    # vLLM's tensors keep their size: what they say is not what is there
    assert memory.on_device() == {} and memory.in_host() == {"weights": 4 * GIB}
    assert memory.unmapped() == both
    assert memory.wake_weights() == 4 * GIB and memory.on_device() == {"weights": 4 * GIB}
    free[0] = GIB
    with pytest.raises(UserError, match=r"2\.00 GiB"):
        memory.wake_kv_cache()
    free[0] = 2 * GIB
    memory.wake_kv_cache()
    memory.wake_kv_cache()  # once
    assert llm.calls[2:] == [("wake", "weights"), ("wake", "kv_cache")]
    assert memory.on_device() == both


def test_devices_of_one_engine_are_counted_together_and_looked_at_one_by_one(monkeypatch):
    free = [80 * GIB, 80 * GIB]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free.pop(0), 80 * GIB))
    monkeypatch.setattr(VllmMover, "sleeps_in_parts", lambda self: True)
    memory = EngineMemory(RecordingLLM(workers=2), 8 * GIB, on_gpu=True)
    assert memory.on_device() == {"weights": 8 * GIB, "kv_cache": 4 * GIB}
    assert memory.sleep() == 8 * GIB == memory.wake_weights()
    free[:] = [80 * GIB, GIB]  # each needs 2 GiB; the second has not
    with pytest.raises(UserError, match=r"needs 2\.00 GiB .* and 1\.00 GiB are free"):
        memory.wake_kv_cache()


@pytest.mark.parametrize("in_parts", [True, False])
def test_an_older_vllm_is_woken_whole_before_it_sleeps(monkeypatch, in_parts):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80 * GIB, 80 * GIB))
    monkeypatch.setattr(VllmMover, "sleeps_in_parts", lambda self: in_parts)
    llm = RecordingLLM()
    memory = EngineMemory(llm, 4 * GIB, on_gpu=True)
    memory.sleep()
    memory.wake_weights()
    llm.calls.clear()
    memory.sleep()
    assert llm.calls[1:] == ([] if in_parts else [("wake", "kv_cache")]) + [("sleep", 1)]
    assert memory.unmapped() == {"weights": 4 * GIB, "kv_cache": 2 * GIB}


@pytest.mark.vllm
def test_vllm_has_these_calls_and_tags():
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.executor.abstract import Executor

    inspect.signature(LLM.sleep).bind(None, level=1)
    inspect.signature(LLM.wake_up).bind(None, tags=["weights"])
    assert "enable_sleep_mode" in inspect.signature(EngineArgs).parameters
    source = inspect.getsource(inspect.getmodule(Executor))
    assert all(f'"{tag}"' in source for tag in engine_memory.LEAVING)
    assert isinstance(VllmMover(None).sleeps_in_parts(), bool)
