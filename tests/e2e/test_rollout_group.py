"""Two vLLM engines answer as one does, and take the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray

from actors.engine import EngineSpec
from actors.weight_sync import make_buckets
from cluster.placement import Request
from cluster.placement_config import Demand
from cluster.rollouts import contiguous, part_seed

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def engines(shared_session, tiny_model, store):
    """Sessions with one engine and with two, all of the same model."""
    from cluster.session import Session

    demand = Demand((Request("policy"), Request("rollout", 2)))
    two = Session(num_threads=1, console=shared_session.console, demand=demand)
    spec = EngineSpec(model_dir=tiny_model, image_root=str(store.root), kv_cache_mib=32)
    for session in (shared_session, two):
        session.load_rollout(spec)
    assert len(two.handles("rollout")) == 2
    yield shared_session, two, spec
    for handle in two.handles("rollout"):
        ray.kill(handle)


def ask(session: Any, samples: Any, **kwargs: Any) -> list[Any]:
    settings = {"num_rollouts_per_prompt": 3, "max_tokens": 12, "temperature": 1.0, "seed": 7}
    made, dropped = session.ask(
        "rollout", "generate", samples, limit="generate", **settings | kwargs
    )
    assert not dropped
    return made


def same(one: list[Any], other: list[Any]) -> None:
    assert [r.id for r in one] == [r.id for r in other]
    assert [r.token_ids for r in one] == [r.token_ids for r in other]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_greedy_answers_are_those_of_one_engine(engines, samples):
    one, two, _ = engines
    same(ask(one, samples, temperature=0.0), ask(two, samples, temperature=0.0))


def test_sampled_answers_are_those_of_one_engine_that_is_asked_part_by_part(engines, samples):
    one, two, _ = engines
    parts = [ask(one, part, seed=part_seed(7, k)) for k, part in enumerate(contiguous(samples, 2))]
    found = ask(two, samples)
    same([*parts[0], *parts[1]], found)
    same(found, ask(two, samples))  # equal seeds, equal answers
    assert ask(two, samples[:1])  # fewer prompts than engines


def test_a_sync_reaches_both(engines, samples, tiny_model):
    from safetensors.torch import load_file

    one, two, _ = engines
    weights = load_file(f"{tiny_model}/model.safetensors")
    buckets = ray.put(make_buckets([(n, t * 0.9) for n, t in weights.items()], 2**20))
    for session in (one, two):
        assert session.ask("rollout", "update_weights", buckets, 9, limit="sync") == 9
    found = ask(two, samples, temperature=0.0)
    assert {r.policy_version for r in found} == {9}
    same(ask(one, samples, temperature=0.0), found)
    held = [session.ask("rollout", "memory", limit="answer") for session in (one, two)]
    assert held[1] == {kind: 2 * size for kind, size in held[0].items()}


def test_with_seeds_of_their_own_answers_do_not_depend_on_the_number(engines, samples):
    one, two, spec = engines
    for session in (one, two):
        session.load_rollout(replace(spec, seeds="answer"))
    found = ask(one, samples)
    same(found, ask(two, samples))
    same(found[:9], ask(two, samples[:3]))
    assert len({r.token_ids for r in found}) > 9  # answers to one prompt differ, too
    one.load_rollout(spec)


def test_an_engine_that_dies_is_replaced_and_only_its_part_is_done_again(engines, samples):
    _, two, _ = engines
    expected = ask(two, samples, temperature=0.0)
    process = two.served("rollout").processes[1]
    ray.kill(process.handle)
    same(expected, ask(two, samples, temperature=0.0))
    assert process.number == 1 and two.restarts[-1] == "rollout"
