"""Two vLLM engines answer as one does, and take the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import ray

from actors.engine import EngineSpec
from actors.weight_sync import make_buckets
from cluster.placement import Request
from cluster.placement_config import Demand
from cluster.rollouts import contiguous, part_seed

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def engines(shared_session, tiny_model, store):
    """One engine, and two as a group, all of the same model."""
    from cluster.session import Session

    demand = Demand((Request("policy"), Request("rollout", 2)))
    session = Session(num_threads=1, console=shared_session.console, demand=demand)
    spec = EngineSpec(model_dir=tiny_model, image_root=str(store.root), kv_cache_mib=32)
    for each in (shared_session, session):
        each.load_rollout(spec)
    assert len(session.handles("rollout")) == 2
    yield shared_session, session
    for handle in session.handles("rollout"):
        ray.kill(handle)


def ask(session: Any, samples: Any, **kwargs: Any) -> tuple[list[Any], list[Any]]:
    settings = {"num_rollouts_per_prompt": 3, "max_tokens": 12, "temperature": 1.0, "seed": 7}
    asked = settings | kwargs
    made: tuple[list[Any], list[Any]] = session.ask(
        "rollout", "generate", samples, limit="generate", **asked
    )
    return made


def same(one: list[Any], other: list[Any]) -> None:
    assert [r.id for r in one] == [r.id for r in other]
    assert [r.token_ids for r in one] == [r.token_ids for r in other]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_greedy_answers_are_those_of_one_engine(engines, samples):
    one, two = engines
    same(ask(one, samples, temperature=0.0)[0], ask(two, samples, temperature=0.0)[0])


def test_sampled_answers_are_those_of_one_engine_that_is_asked_part_by_part(engines, samples):
    one, two = engines
    parts = contiguous(samples, 2)
    expected = [ask(one, part, seed=part_seed(7, k))[0] for k, part in enumerate(parts)]
    found, dropped = ask(two, samples)
    same(expected[0] + expected[1], found)
    assert not dropped
    same(found, ask(two, samples)[0])  # equal seeds, equal answers
    assert ask(two, samples[:1])[0]  # fewer prompts than engines


def test_with_seeds_of_their_own_answers_do_not_depend_on_the_number(
    engines, samples, tiny_model, store
):
    one, two = engines
    spec = EngineSpec(model_dir=tiny_model, image_root=str(store.root), seeds="answer")
    for session in (one, two):
        session.load_rollout(spec)
    found, _ = ask(one, samples)
    same(found, ask(two, samples)[0])
    same(found[:9], ask(two, samples[:3])[0])
    assert len({r.token_ids for r in found}) > 9  # answers to one prompt differ, too


def test_a_sync_reaches_both(engines, samples, tiny_model):
    from safetensors.torch import load_file

    one, two = engines
    weights = load_file(f"{tiny_model}/model.safetensors")
    buckets = ray.put(make_buckets([(n, t * 0.9) for n, t in weights.items()], 2**20))
    before = one.ask("rollout", "conditions", limit="answer")
    one.ask("rollout", "update_weights", buckets, limit="sync")
    version = two.ask("rollout", "update_weights", buckets, limit="sync")
    found, _ = ask(two, samples, temperature=0.0)
    assert {r.policy_version for r in found} == {version}
    same(ask(one, samples, temperature=0.0)[0], found)
    assert two.ask("rollout", "conditions", limit="answer") == before
    memory = [session.ask("rollout", "memory", limit="answer") for session in (one, two)]
    assert memory[1] == {kind: 2 * size for kind, size in memory[0].items()}
    # One engine gets a sync that the other does not.
    ray.get(two.handles("rollout")[1].update_weights.remote(buckets))
    with pytest.raises(RuntimeError, match="engines are at versions"):
        two.ask("rollout", "update_weights", buckets, limit="sync")


def test_an_engine_that_dies_is_replaced_and_only_its_part_is_done_again(engines, samples):
    _, two = engines
    expected, _ = ask(two, samples, temperature=0.0)
    process = two.served("rollout").processes[1]
    ray.kill(process.handle)
    found, _ = ask(two, samples, temperature=0.0)
    assert process.number == 1 and two.restarts[-1] == "rollout"
    assert [r.id for r in found] == [r.id for r in expected]
