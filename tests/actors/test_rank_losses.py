"""One, two and four ranks on one machine: the same losses and metrics, step by step."""

from __future__ import annotations

import numpy as np
import pytest
import ray

from trainers.batch import Row
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


def pairs_of(samples):
    """Seven pairs of different lengths, which neither two nor four ranks share evenly."""
    groups = []
    for index, sample in enumerate(samples[:7]):
        rows = []
        for side, length in enumerate((2 + index, 9 - index)):
            ids = tuple(range(8 + index, 8 + index + length - 1))
            row = Row.of_response(sample, (*ids, 1), f"{index}/{side}", margin=1.0)
            row.tokens["ref_logprobs"] = np.full(length, -2.0, np.float32)
            rows.append(row)
        groups.append(tuple(rows))
    return groups


@pytest.fixture(scope="module")
def losses(shared_session, tiny_model, store, samples):
    """`losses(ranks, zero_stage)`: each step's metrics, as every rank reports them."""
    from actors.train_spec import TrainSpec
    from cluster.session import Session

    def run(ranks: int, zero_stage: int) -> list[dict[str, float]]:
        session = Session(num_threads=1, console=shared_session.console, num_ranks=ranks)
        spec = TrainSpec(
            role="policy",
            model_dir=tiny_model,
            image_root=str(store.root),
            zero_stage=zero_stage,
            micro_batch_size=2,
        )
        session.load_trainer("policy", spec)
        group = session.trainer("policy")
        steps = []
        for number in range(ROUNDS):
            optimisation = Optimisation(learning_rate=1e-4, epochs=1, minibatch_size=7)
            method = make_method(DPOConfig())
            calls = group.call("train", pairs_of(samples), method, optimisation, seed=number)
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
