"""One, two and four ranks on one machine: the same losses and metrics, step by step."""

from __future__ import annotations

import pytest
import ray

from tests.actors.rank_steps import load_policy, seven_pairs
from trainers.config import DPOConfig
from trainers.method import Optimisation
from trainers.registry import make_method

pytestmark = [
    pytest.mark.ray,
    pytest.mark.deepspeed,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]
ROUNDS = 4


@pytest.fixture(scope="module")
def losses(shared_session, tiny_model, store, samples):
    """`losses(ranks, zero_stage)`: each step's metrics, as every rank reports them."""
    from cluster.session import Session

    def run(ranks: int, zero_stage: int) -> list[dict[str, float]]:
        session = Session(num_threads=1, console=shared_session.console, num_ranks=ranks)
        group = load_policy(session, tiny_model, str(store.root), zero_stage=zero_stage)
        steps = []
        for number in range(ROUNDS):
            optimisation = Optimisation(learning_rate=1e-4, epochs=1, minibatch_size=7)
            method = make_method(DPOConfig())
            calls = group.call("train", seven_pairs(samples), method, optimisation, seed=number)
            reported = ray.get(calls, timeout=600)
            for other in reported[1:]:
                assert {n: v for n, v in other.items() if "seconds" not in n} == {
                    n: v for n, v in reported[0].items() if "seconds" not in n
                }
            steps.append(reported[0])
        group.end()
        return steps

    return run


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_losses_do_not_depend_on_the_number_of_ranks(losses, zero_stage):
    one = losses(1, zero_stage)
    assert one[0]["loss"] > one[-1]["loss"]  # it learns
    for ranks in (2, 4):
        for alone, together in zip(one, losses(ranks, zero_stage), strict=True):
            assert alone.keys() == together.keys()
            for name in alone:
                if "seconds" not in name:
                    gap = abs(alone[name] - together[name])
                    assert gap <= 1e-5 * max(1.0, abs(alone[name])), (ranks, name)
