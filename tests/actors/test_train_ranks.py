"""Two ranks take the same steps as one process, whatever the groups, and stop together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import ray
import torch

from tests.actors.rank_steps import load_policy, sent_weights, seven_pairs
from trainers.batch import collate
from trainers.config import DPOConfig
from trainers.dpo import DPO
from trainers.method import Optimisation
from trainers.registry import make_method

pytestmark = [pytest.mark.ray, pytest.mark.deepspeed, pytest.mark.slow]


@pytest.fixture(scope="module")
def two(shared_session):
    """A session whose trained copies have two ranks of one thread each."""
    from cluster.session import Session

    session = Session(num_threads=1, console=shared_session.console, num_ranks=2)
    yield session
    session.unload("policy")


def run(session, tiny_model, store, samples, zero_stage, **options):
    group = load_policy(session, tiny_model, str(store.root), zero_stage=zero_stage, **options)
    groups = seven_pairs(samples)
    metrics = ray.get(
        group.call(
            "train",
            groups,
            make_method(DPOConfig()),
            Optimisation(learning_rate=1e-3, epochs=2, minibatch_size=7),
            seed=0,
        )
    )
    rows = [row for pair in groups for row in pair][:13]  # 13 rows do not divide by two ranks
    scores = np.concatenate(group.score_rows(rows))
    return metrics, scores, sent_weights(group)


@pytest.mark.parametrize(
    ("zero_stage", "options"),
    [
        (2, {}),
        (3, {}),
        # Scoring takes 3 forwards of at most 86 tokens on one rank, and 4 on the other.
        pytest.param(
            3,
            {"micro_batch_tokens": 86, "packing": True, "share_images": True},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_ranks_equal_one(shared_session, two, tiny_model, store, samples, zero_stage, options):
    _, one_scores, one_weights = run(shared_session, tiny_model, store, samples, zero_stage=0)
    _, two_scores, two_weights = run(two, tiny_model, store, samples, zero_stage, **options)
    np.testing.assert_allclose(two_scores, one_scores, atol=1e-4)
    assert one_weights.keys() == two_weights.keys()
    gaps = torch.cat([(two_weights[n] - t).abs().flatten() for n, t in one_weights.items()])
    # Two steps of 1e-3: Adam makes rounding noise of the smallest gradients up to a few 1e-5.
    assert float(gaps.max()) < 1e-4
    assert float((gaps > 1e-6).float().mean()) < 1e-3


class NanOnRankOne(DPO):
    def loss(self, role, outputs, batch, totals):
        loss, metrics = super().loss(role, outputs, batch, totals)
        return loss * (math.nan if torch.distributed.get_rank() == 1 else 1.0), metrics


def test_one_rank_with_a_bad_loss_stops_all(two, tiny_model, store, samples):
    group = load_policy(two, tiny_model, str(store.root))
    optimisation = Optimisation(learning_rate=1e-3, epochs=1, minibatch_size=4)
    calls = group.call(
        "train", seven_pairs(samples), NanOnRankOne(DPOConfig()), optimisation, seed=0
    )
    for call in calls:
        with pytest.raises(FloatingPointError, match="policy: loss is "):
            ray.get(call, timeout=60)


class UnequalStream:
    """Two micro-batches a step for rank 0, one for rank 1."""

    def __init__(self, groups):
        self.groups = groups

    def __call__(self, processing, rank, world):
        assert world == 2
        while True:
            batches = []
            for group in self.groups[: 2 - rank]:
                encoded = [
                    processing.encode(r.id, r.prompt, r.images, response_ids=r.response_ids)
                    for r in group
                ]
                batches.append(collate(list(group), encoded, processing))
            yield batches


def test_ranks_may_differ_in_micro_batches(two, tiny_model, store, samples):
    group = load_policy(two, tiny_model, str(store.root))
    ray.get(group.call("open_stream", UnequalStream(seven_pairs(samples))), timeout=60)
    optimisation = Optimisation(learning_rate=1e-3, epochs=1, minibatch_size=2, total_steps=3)
    method = make_method(DPOConfig())
    results = ray.get(group.call("train_stream", 3, method, optimisation), timeout=60)
    assert all(np.isfinite(metrics["loss"]) for metrics in results)
