"""Which pairs MM-RLHF and mllm-dpo take of a prompt's responses; RLAIF-V's rule as a whole."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainers.pairs import mine_pairs


def mine(items, **options):
    defaults = {"margin": 0.0, "max_pairs_per_prompt": 1, "length_balance": False}
    return mine_pairs(items, **{"rng": random.Random(0), **defaults, **options})


def names(mined):
    return {(p.chosen.rollout.id, p.rejected.rollout.id) for p in mined.pairs}


def test_all_ranks_takes_every_pair_of_different_rank_whatever_the_cap(make_scored):
    # MM-RLHF's example 1 > 2 = 3 > 4: five pairs of six, the tie is none
    items = [make_scored(n, "s", v) for n, v in zip("abcd", (4.0, 2.0, 2.0, 1.0), strict=True)]
    found = names(mine(items, strategy="all_ranks"))
    assert found == {("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")}


def test_best_random_takes_the_best_against_any_that_is_far_enough_below(make_scored):
    # mllm-dpo: scores 9, 8, 7, 4 of 12, at least 2 apart: 7 and 4 may be rejected, 8 may not
    items = [make_scored(n, "s", v) for n, v in zip("abcd", (9.0, 8.0, 7.0, 4.0), strict=True)]
    drawn = [
        names(mine(items, strategy="best_random", margin=2.0, rng=random.Random(i)))
        for i in range(40)
    ]
    assert {pair for pairs in drawn for pair in pairs} == {("a", "c"), ("a", "d")}
    assert all(len(pairs) == 1 for pairs in drawn)
    close = items[:2]
    assert not mine(close, strategy="best_random", margin=2.0).pairs


scores = st.lists(st.integers(-4, 0), min_size=2, max_size=10)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(prompts=st.lists(scores, min_size=1, max_size=4), seed=st.integers(0, 9))
def test_rlaif_v_keeps_at_most_two_random_pairs_a_claim_apart(make_scored, prompts, seed):
    items = [
        make_scored(f"{p}/{i}", f"p{p}", float(score))
        for p, prompt in enumerate(prompts)
        for i, score in enumerate(prompt)
    ]
    mined = mine(items, strategy="all", margin=1.0, max_pairs_per_prompt=2, rng=random.Random(seed))
    per_prompt: dict[str, int] = {}
    for pair in mined.pairs:
        assert pair.chosen.rollout.sample_id == pair.rejected.rollout.sample_id == pair.sample_id
        assert pair.margin >= 1
        per_prompt[pair.sample_id] = per_prompt.get(pair.sample_id, 0) + 1
    for p, prompt in enumerate(prompts):
        different = sum(a != b for i, a in enumerate(prompt) for b in prompt[:i])
        assert per_prompt.get(f"p{p}", 0) == min(2, different)
