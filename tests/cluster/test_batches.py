"""The derivation of batch sizes, worked out by hand."""

from __future__ import annotations

import pytest

from cluster.batches import Steps, derive
from cluster.config import RunConfig
from cluster.config_text import validate
from trainers.config import METHODS
from trainers.pairs import most_pairs
from trainers.registry import make_method


def derived(method, ranks=None, **values):
    config = validate(RunConfig, {"method": method, **values}, "test")
    made = make_method(config.method)
    return derive(config, made, ranks or dict.fromkeys(made.trained, config.train.num_ranks))


def test_ppo_by_hand():
    # 96 x 4 = 384 rows in minibatches of 64: 6 steps an epoch; policy 2 epochs, critic 3 of 12.
    found = derived({"name": "ppo"}, {"policy": 2, "critic": 1})
    assert (found.prompts, found.answers_per_prompt, found.groups) == (96, 4, 384)
    assert found.copies == (
        Steps(
            role="policy",
            epochs=2,
            minibatch=64,
            ranks=2,
            groups_per_rank=32,
            micro_batch=16,
            forwards=2,
            tokens=16 * 384,
            steps=12,
        ),
        Steps(
            role="critic",
            epochs=3,
            minibatch=32,
            ranks=1,
            groups_per_rank=32,
            micro_batch=16,
            forwards=2,
            tokens=16 * 384,
            steps=36,
        ),
    )
    assert found.lines()[0] == (
        "batches: 96 prompts x 4 rollouts = 384 answers a round -> 384 single rows"
    )


def test_dpo_by_hand():
    # Of 4 answers 2 pairs at most: 192 pairs, 16 a step: 12 steps, twice. 5 and 6 of a minibatch of
    # 16 pairs on 3 ranks; 7 rows hold 3 pairs, so 6 rows a forward and 2 forwards.
    found = derived({"name": "dpo"}, train={"num_ranks": 3, "micro_batch_size": 7})
    (policy,) = found.copies
    assert (found.groups, found.rows_per_group) == (192, 2)
    assert (policy.groups_per_rank, policy.micro_batch, policy.forwards) == (6, 6, 2)
    assert policy.steps == 24
    start, line = found.lines()
    assert start == (
        "batches: 96 prompts x 4 rollouts = 384 answers a round -> at most 192 groups of 2 rows"
    )
    assert line == (
        "batches: policy: minibatch 16 -> 6 on each of 3 rank(s) -> 2 forward(s) of 6 rows, at "
        "most 2,304 tokens; at most 24 optimiser steps a round in 2 epoch(s)"
    )


def test_the_smallest_round_is_one_step():
    method = {"name": "ppo", "epochs": 1, "minibatch_size": 1, "critic_epochs": 1}
    rollout = {"num_prompts": 1, "num_rollouts_per_prompt": 1}
    assert [copy.steps for copy in derived(method, rollout=rollout).copies] == [1, 1]


def test_a_group_larger_than_a_micro_batch_goes_alone():
    found = derived({"name": "rpo", "contrast_size": 4}, train={"micro_batch_size": 2})
    (policy,) = found.copies
    assert (found.groups, found.rows_per_group, policy.micro_batch) == (48, 8, 8)  # 192 pairs / 4


def test_a_budget_of_tokens_by_hand():
    # Pairs of at most 2 x 384 = 768 tokens: 2,000 hold two of them, so that 16 are 8 forwards, or
    # fewer where answers are short.
    found = derived({"name": "dpo"}, train={"max_tokens_per_micro_batch": 2000})
    (policy,) = found.copies
    assert (policy.micro_batch, policy.forwards, policy.tokens) == (0, 8, 2000)
    assert "-> at most 8 forward(s) of at most 2,000 tokens; at most 24" in found.lines()[1]
    # A pair that has more goes alone; a step that has fewer is one forward.
    (policy,) = derived({"name": "dpo"}, train={"max_tokens_per_micro_batch": 500}).copies
    assert (policy.forwards, policy.tokens) == (16, 768)
    (policy,) = derived({"name": "dpo"}, train={"max_tokens_per_micro_batch": 10**6}).copies
    assert (policy.forwards, policy.tokens) == (1, 16 * 768)


def test_made_pairs_have_candidates_of_their_own():
    made = {"chosen": "data", "rejected": ["noisy", "injected"], "noise_steps": [500, 800]}
    pairs = {"strategy": "all_ranks"}
    found = derived({"name": "dpo", "pairs": pairs}, negatives=made)
    # 1 chosen, 2 x 4 noisy and 1 injected answers: 45 two-combinations at most.
    assert found.groups == 96 * 45


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("all_ranks", 6), ("all", 2), ("best_worst", 2), ("best_random", 1)],
)
def test_most_pairs_of_four_answers(strategy, expected):
    assert most_pairs(4, strategy, 2) == expected
    assert most_pairs(1, strategy, 2) == 0


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_declares_what_it_trains_on(name):
    found = derived({"name": name})
    assert found.groups > 0 and found.rows_per_group > 0
    assert all(copy.steps > 0 and copy.tokens > 0 for copy in found.copies)
