"""Several comparisons as one table: what is refused, and what an ordering's seeds say."""

from __future__ import annotations

import pytest

from trainers.comparison import Comparison, Evaluated, MethodResult
from trainers.data.errors import UserError
from trainers.seeds import Ordering, decide, gather, markdown

DPO_NSFT = Ordering(better="nsft", worse="dpo", claim="ahead", source="here")


def comparison(seed: int, chairs: dict[str, float], base: float = 0.2, beta: float = 0.1):
    return Comparison(
        seed=seed,
        config={"rounds": 4, "seed": seed, "arms": {n: {"beta": beta} for n in chairs}},
        base=Evaluated(metrics={"chair_i": base}),
        methods={
            name: MethodResult(
                method=name,
                metrics={"chair_i": value},
                core_seconds={"driver": 1.0, "policy/0": 2.0},
                copies_train=["policy"],
                copies_loop=["policy", "rollout_engine"],
            )
            for name, value in chairs.items()
        },
    )


def test_an_ordering_is_decided_seed_by_seed():
    runs = [
        comparison(0, {"nsft": 0.1, "dpo": 0.2}),
        comparison(1, {"nsft": 0.3, "dpo": 0.2}),
        comparison(2, {"dpo": 0.2}),
    ]
    (outcome,) = decide(gather(runs), [DPO_NSFT])
    assert outcome.held == {0: True, 1: False, 2: None}
    assert outcome.numbers == "20.0 : 20.0"


def test_more_is_better_where_the_metric_says_so():
    runs = comparison(0, {"nsft": 0.1, "dpo": 0.2})
    for name, recall in (("nsft", 0.9), ("dpo", 0.8)):
        runs.methods[name].metrics["recall"] = recall
    recall = DPO_NSFT.model_copy(update={"metric": "recall"})
    assert decide(gather([runs]), [recall])[0].held == {0: True}


def test_the_base_can_be_an_arm_of_an_ordering_and_a_stopped_arm_has_no_part():
    runs = comparison(0, {"dpo": 0.1})
    ordering = Ordering(better="dpo", worse="base", claim="helps", source="here")
    assert decide(gather([runs]), [ordering])[0].held == {0: True}
    runs.methods["dpo"].failure = "parity"
    assert decide(gather([runs]), [ordering])[0].held == {0: None}
    assert "0, 1 stopped" in markdown(gather([runs]), [])


def test_the_table_has_mean_and_range():
    runs = [comparison(0, {"dpo": 0.1}), comparison(1, {"dpo": 0.2})]
    seeds = gather(runs)
    row = next(line for line in markdown(seeds, []).splitlines() if line.startswith("| dpo"))
    assert "| 15.0 (10.0 to 20.0) |" in row and "| 1 / 2 |" in row and "| 0.0 | - | 3 | 2 |" in row


def test_runs_of_one_seed_join_their_arms():
    seeds = gather([comparison(0, {"dpo": 0.1}), comparison(0, {"nsft": 0.2})])
    assert list(seeds.arms) == ["dpo", "nsft"] and seeds.seeds == (0,)


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (comparison(0, {"dpo": 0.3}), "dpo: seed 0 is there twice"),
        (comparison(1, {"dpo": 0.3}, beta=0.5), "arm.beta: 0.1 and 0.5"),
        (comparison(0, {"nsft": 0.3}, base=0.3), "bases differ"),
        (Comparison(seed=5, config={}), ""),
    ],
)
def test_what_is_not_one_comparison_is_refused(other, part):
    runs = [comparison(0, {"dpo": 0.1}), other]
    if not part:
        gather(runs)
        return
    with pytest.raises(UserError, match=part):
        gather(runs)


def test_an_unknown_arm_is_named():
    with pytest.raises(UserError, match="arm nsft is in none"):
        decide(gather([comparison(0, {"dpo": 0.1})]), [DPO_NSFT])
    with pytest.raises(UserError, match="no arms"):
        gather([Comparison()])
