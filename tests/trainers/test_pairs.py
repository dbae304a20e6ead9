import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.records import Rollout, ScoredRollout
from trainers.pairs import LENGTH_THRESHOLDS, WHY_DROPPED, balance_lengths, mine_pairs


def scored(
    name: str, score: float | None, text: str | None = None, sample: str = "s", finish: str = "stop"
) -> ScoredRollout:
    rollout = Rollout(
        id=f"{sample}/{name}",
        sample_id=sample,
        text=f"text {name}" if text is None else text,
        token_ids=(1, 2),
        logprobs=(-1.0, -1.0),
        policy_version=0,
        seed=0,
        temperature=1.0,
        finish_reason=finish,
        prompt_tokens=3,
    )
    return ScoredRollout(
        rollout=rollout, judge="test", score=score, failure="timeout" if score is None else None
    )


def mine(items, function=mine_pairs, **options):
    defaults = {
        "margin": 0.5,
        "max_pairs_per_prompt": 1,
        "strategy": "best_worst",
        "length_balance": False,
        "rng": random.Random(0),
    }
    return function(items, **(defaults | options))


def ids(mined):
    return [(p.chosen.rollout.id[2:], p.rejected.rollout.id[2:]) for p in mined.pairs]


def test_best_against_worst():
    mined = mine([scored("a", 1.0), scored("b", 3.0), scored("c", 0.0), scored("d", 2.0)])
    assert ids(mined) == [("b", "c")]
    assert mined.pairs[0].margin == 3.0
    assert mined.stats["pairs/candidates"] == 6
    assert mined.stats["pairs/dropped_cap"] == 5
    assert mined.stats["pairs/share_of_prompts"] == 1.0


def test_best_worst_with_a_larger_cap_uses_each_rollout_once():
    mined = mine(
        [scored("a", 1.0), scored("b", 3.0), scored("c", 0.0), scored("d", 2.0)],
        max_pairs_per_prompt=4,
    )
    assert ids(mined) == [("b", "c"), ("d", "a")]


def test_all_draws_up_to_the_cap_from_every_combination():
    items = [scored(str(i), float(i)) for i in range(4)]
    assert len(mine(items, strategy="all", max_pairs_per_prompt=99).pairs) == 6
    drawn = {
        tuple(
            sorted(ids(mine(items, strategy="all", max_pairs_per_prompt=2, rng=random.Random(i))))
        )
        for i in range(200)
    }
    assert len(drawn) == 15  # 6 choose 2


def test_margin_and_ties():
    items = [scored("a", 1.0), scored("b", 1.25)]
    assert not mine(items).pairs
    assert len(mine(items, margin=0.25).pairs) == 1
    tied = mine([scored("a", 1.0), scored("b", 1.0)], margin=0.0)
    assert not tied.pairs and tied.stats["pairs/dropped_margin"] == 1


def test_failures_are_counted_and_never_used():
    mined = mine(
        [scored("a", None), scored("b", 3.0), scored("c", 0.0), scored("d", None, sample="t")]
    )
    assert ids(mined) == [("b", "c")]
    assert mined.stats["pairs/failures"] == 2
    assert mined.stats["pairs/prompts"] == 2
    assert mined.stats["pairs/share_of_prompts"] == 0.5


def test_a_response_that_was_cut_off_is_rejected_only():
    mined = mine(
        [scored("a", 9.0, finish="length"), scored("b", 3.0), scored("c", 0.0, finish="length")]
    )
    assert ids(mined) == [("b", "c")]
    assert mined.stats["pairs/dropped_truncated"] == 2


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([scored("a", 1.0, finish="length"), scored("b", 0.0)], "cut off; raise rollout.max_tok"),
        ([scored("a", 1.0, "same"), scored("b", 0.0, "same")], "raise rollout.temperature"),
        ([scored("a", None), scored("b", None)], "the judge failed on 2 of 2 answers"),
        ([scored("a", 1.0), scored("b", 0.9)], "within method.pairs.margin"),
        ([scored("a", 1.0)], "raise rollout.num_rollouts_per_prompt"),
    ],
)
def test_a_round_without_pairs_says_why(items, why):
    mined = mine(items)
    assert not mined.pairs and why in mined.why_none


def one_of_two(sample: str) -> list[ScoredRollout]:
    """One answer has a score, the judge failed on the other."""
    return [scored("a", 1.0, sample=sample), scored("b", None, sample=sample)]


@pytest.mark.parametrize(
    ("items", "why"),
    [
        # a judge's failure counts by the combinations that it costs
        ([*one_of_two("s"), *one_of_two("t")], "the judge failed on 2 of 4 answers"),
        # one failure of four answers: three combinations of six, the others are within the margin
        (
            [scored("a", None), *(scored(name, 1.0) for name in "bcd")],
            "the judge failed on 1 of 4 answers",
        ),
        # one of five: four combinations of ten
        ([scored("a", None), *(scored(name, 1.0) for name in "bcde")], "method.pairs.margin"),
        # a failure with nothing to pair it with costs none
        ([scored("a", None), *(scored(n, 1.0, sample="t") for n in "ab")], "method.pairs.margin"),
        ([scored("a", None)], "raise rollout.num_rollouts_per_prompt"),
    ],
)
def test_judge_failures_and_dropped_pairs_are_counted_alike(items, why):
    mined = mine(items)
    assert not mined.pairs and why in mined.why_none


def test_of_reasons_that_weigh_the_same_the_first_to_mend_is_told():
    reasons = {
        "failures": one_of_two("s"),
        "dropped_identical": [scored(n, 1.0, "x", sample="t") for n in "ab"],
        "dropped_margin": [scored(n, 1.0, sample="u") for n in "ab"],
        "dropped_truncated": [
            scored("a", 1.0, sample="v", finish="length"),
            scored("b", 0.0, sample="v"),
        ],
    }
    assert list(reasons) == list(WHY_DROPPED)
    told = []
    for first in range(len(reasons)):
        left = [item for items in list(reasons.values())[first:] for item in items]
        told.append(mine(left[::-1]).why_none)
    assert told == [WHY_DROPPED[key].format(failed="1 of 8") for key in reasons]


@given(
    st.lists(
        st.tuples(st.sampled_from("st"), st.one_of(st.none(), st.integers(0, 3)), st.booleans()),
        max_size=8,
    ),
    st.sampled_from(["best_worst", "all", "all_ranks", "best_random"]),
    st.sampled_from([0.0, 0.5]),
)
def test_a_round_with_a_candidate_has_a_pair(answers, strategy, min_share_kept):
    """So no cap, no duplicate and no length is ever the reason for a round without any."""
    items = [
        scored(str(n), None if score is None else float(score), "w " * n, sample, finish)
        for n, (sample, score, cut) in enumerate(answers)
        for finish in ["length" if cut else "stop"]
    ]
    mined = mine(
        items, strategy=strategy, length_balance=True, min_share_kept=min_share_kept, margin=1.0
    )
    assert bool(mined.pairs) == bool(mined.stats["pairs/candidates"])
    assert mined.pairs or mined.why_none


def test_identical_texts_are_never_paired_and_no_text_pair_comes_twice():
    items = [
        scored("a", 3.0, "x"),
        scored("b", 0.0, " x "),
        scored("c", 0.0, "y"),
        scored("d", 0.1, "y"),
    ]
    mined = mine(items, strategy="all", max_pairs_per_prompt=99)
    # x(3) over y twice is one pair; x(0) against y(0), y(0.1) is below the margin.
    assert len(mined.pairs) == 1
    assert mined.stats["pairs/dropped_identical"] == 2
    assert mined.stats["pairs/dropped_duplicate"] == 1


def test_pairs_stay_within_a_sample():
    items = [scored("a", 3.0, sample="s"), scored("b", 0.0, sample="t")]
    assert not mine(items).pairs


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="s/b: score is nan"):
        mine([scored("a", 1.0), scored("b", float("nan"))])


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="margin"):
        mine([], margin=-1.0)
    with pytest.raises(ValueError, match="max_pairs"):
        mine([], max_pairs_per_prompt=0)


def test_rlaif_v_score_makes_pairs_from_claim_counts():
    # 5 claims, 2 rejected: -2; another with 1 rejected: -1; a tie with the first makes no pair.
    mined = mine(
        [scored("a", -2.0), scored("b", -1.0), scored("c", -2.0)],
        margin=1.0,
        strategy="all",
        max_pairs_per_prompt=9,
    )
    assert sorted(ids(mined)) == [("b", "a"), ("b", "c")]


def lengths_pair(chosen: int, rejected: int, index: int):
    return (
        scored(f"{index}c", 1.0, "w " * chosen, sample=f"s{index}"),
        scored(f"{index}r", 0.0, "v " * rejected, sample=f"s{index}"),
    )


def brute_force(pairs, share):
    """Every threshold, by its definition."""
    best = None
    for r in LENGTH_THRESHOLDS:
        kept = [(c, j) for c, j in pairs if ((j - c) / j if j else 0.0) <= r]
        if not kept or len(kept) < share * len(pairs):
            continue
        total = sum(j for _, j in kept)
        value = abs(sum(c for c, _ in kept) - total) / max(total, 1)
        if best is None or value <= best[0]:
            best = (value, r, kept)
    return best


def test_length_balance_by_hand():
    # (chosen, rejected) words: shortening 0.5, 0.2, -0.25. All three: 17 words against 22, off by
    # 5/22. Without the first: 13 against 14, off by 1/14. Only the last: 5 against 4, off by 1/4.
    pairs = [lengths_pair(4, 8, 0), lengths_pair(8, 10, 1), lengths_pair(5, 4, 2)]
    threshold, kept = balance_lengths(pairs, min_share_kept=0.0)
    assert threshold == 0.48  # the largest below 0.5
    assert kept == pairs[1:]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.5, 0.9]),
)
def test_length_balance_equals_brute_force(lengths, share):
    pairs = [lengths_pair(c, r, i) for i, (c, r) in enumerate(lengths)]
    threshold, kept = balance_lengths(pairs, min_share_kept=share)
    expected = brute_force(lengths, share)
    if expected is None:
        assert (threshold, kept) == (1.0, pairs)
    else:
        assert threshold == expected[1]
        words = [(len(c.rollout.text.split()), len(r.rollout.text.split())) for c, r in kept]
        assert words == expected[2]


def test_length_balance_is_reported():
    items = [
        item for i, (c, r) in enumerate([(4, 8), (8, 10), (5, 4)]) for item in lengths_pair(c, r, i)
    ]
    mined = mine(items, length_balance=True)
    assert mined.stats["pairs/length_threshold"] == 0.48
    assert mined.stats["pairs/dropped_length"] == 1
    assert mined.stats["pairs/length_difference"] == pytest.approx((13 - 14) / 2)


rollouts = st.lists(
    st.tuples(
        st.sampled_from("st"),
        st.one_of(st.none(), st.integers(0, 4).map(float)),
        st.sampled_from(["x", "y y", "z z z"]),
        st.sampled_from(["stop", "stop", "length"]),
    ),
    max_size=10,
)


@settings(max_examples=60, deadline=None)
@given(
    rollouts,
    st.sampled_from(["best_worst", "all"]),
    st.integers(1, 3),
    st.booleans(),
    st.integers(),
)
def test_rules_hold_for_any_rollouts(rows, strategy, cap, balance, seed):
    items = [
        scored(str(i), score, text, s, finish) for i, (s, score, text, finish) in enumerate(rows)
    ]
    options = {"strategy": strategy, "max_pairs_per_prompt": cap, "length_balance": balance}
    mined = mine(items, rng=random.Random(seed), **options)
    assert mined == mine(items, rng=random.Random(seed), **options)
    for pair in mined.pairs:
        assert pair.chosen.rollout.sample_id == pair.rejected.rollout.sample_id == pair.sample_id
        assert pair.chosen.rollout.text != pair.rejected.rollout.text
        assert pair.chosen.rollout.finish_reason == "stop"
        assert pair.chosen.score - pair.rejected.score == pair.margin >= 0.5
    by_sample = [pair.sample_id for pair in mined.pairs]
    assert all(by_sample.count(sample) <= cap for sample in "st")
