"""When two arms do not compare: the rule, by hand."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.comparison import Comparison, MethodResult
from trainers.conditions import (
    LABELS,
    Conditions,
    LogprobPath,
    MicroBatch,
    Overlap,
    Precision,
    RolloutCopy,
    Shards,
    differences,
    unfair_arms,
    unfair_lines,
)

SAME: dict[str, Any] = {
    "precision": Precision(weights="float32", masters="float32", optimizer="float32"),
    "micro_batch": MicroBatch(tokens=6400, rows=64, length=100, most_rows=64),
    "shards": Shards(ranks=2, zero_stage=2),
    "logprob_path": LogprobPath(chunk=512, gradient_checkpointing=False, reference="own_copy"),
    "rollout_copy": RolloutCopy(
        dtype="float32", max_num_seqs=256, max_model_len=384, kv_cache_tokens=4096
    ),
    "overlap": Overlap(judge_slices=1, off_policy_steps=0),
}


def under(**changes: dict[str, Any]) -> Conditions:
    """`SAME` but for the given values of the given parts."""
    parts = {name: part.model_copy(update=changes.get(name, {})) for name, part in SAME.items()}
    return Conditions(**parts)


def test_by_which_way_the_same_weights_came_does_not_decide():
    arms = {"dpo": under(), "ppo": under(rollout_copy={"transport": "ipc"})}
    assert differences(arms) == []
    assert arms["ppo"].rollout_copy.transport == "ipc"  # it is reported


def test_equal_conditions_compare():
    assert differences({name: under() for name in ("ppo", "dpo", "nsft")}) == []
    assert differences({"ppo": under()}) == differences({}) == []


@pytest.mark.parametrize(
    ("what", "key", "value"),
    [
        ("precision", "weights", "bfloat16"),
        ("precision", "masters", "bfloat16"),
        ("precision", "optimizer", "bfloat16"),
        ("micro_batch", "tokens", 3200),
        ("shards", "ranks", 1),
        ("shards", "zero_stage", 3),
        ("logprob_path", "chunk", 511),
        ("logprob_path", "gradient_checkpointing", True),
        ("logprob_path", "reference", "cached"),
        ("rollout_copy", "dtype", "bfloat16"),
        ("rollout_copy", "max_num_seqs", 128),
        ("rollout_copy", "max_model_len", 512),
        ("rollout_copy", "kv_cache_tokens", 2048),
        ("rollout_copy", "sleeps", True),
        ("overlap", "judge_slices", 4),
        ("overlap", "off_policy_steps", 1),
    ],
)
def test_one_value_is_one_difference(what, key, value):
    (found,) = differences({"ppo": under(), "dpo": under(**{what: {key: value}})})
    assert (found.arms, found.what) == (("ppo", "dpo"), what)
    assert found.values == {"ppo": {key: getattr(SAME[what], key)}, "dpo": {key: value}}


@pytest.mark.parametrize(("tokens", "compare"), [(5760, True), (5759, False), (7111, True),
                                                  (7112, False)])  # fmt: skip
def test_micro_batch_tokens_may_differ_by_a_tenth_of_the_larger(tokens, compare):
    # 6400 - 5760 = 640 = 0.1 * 6400; 7111 - 6400 = 711 <= 711.1; 7112 - 6400 = 712 > 711.2.
    found = differences({"a": under(), "b": under(micro_batch={"tokens": tokens})})
    assert (found == []) is compare


def test_rows_decide_only_through_tokens():
    # Half the rows of twice the length are as many tokens; a pair of DPO is two rows.
    half = under(micro_batch={"rows": 32, "length": 200, "most_rows": 32})
    assert differences({"ppo": under(), "dpo": half}) == []


def test_a_method_without_reference_compares_in_any_mode():
    without = under(logprob_path={"reference": None})
    cached = under(logprob_path={"reference": "cached"})
    assert differences({"ppo": under(), "sft": without}) == []
    assert differences({"sft": without, "dpo": cached}) == []
    (found,) = differences({"ppo": under(), "sft": without, "dpo": cached})
    assert found.arms == ("ppo", "dpo")


def test_what_was_not_measured_is_no_difference():
    replayed = under().model_copy(update={"rollout_copy": None, "micro_batch": None})
    other = under(rollout_copy={"dtype": "bfloat16"}, micro_batch={"tokens": 1})
    assert differences({"a": replayed, "b": other}) == []


@given(st.lists(st.sampled_from([512, 64]), min_size=0, max_size=5))
def test_every_pair_is_found_once(chunks):
    arms = {f"arm{i}": under(logprob_path={"chunk": c}) for i, c in enumerate(chunks)}
    expected = {
        (f"arm{i}", f"arm{j}")
        for i, j in combinations(range(len(chunks)), 2)
        if chunks[i] != chunks[j]
    }
    found = differences(arms)
    assert {difference.arms for difference in found} == expected
    assert len(found) == len(expected)
    assert unfair_arms(found) == {name for pair in expected for name in pair}


def test_lines_name_every_value_with_its_arms():
    arms = {
        "ppo": under(),
        "dpo": under(micro_batch={"tokens": 3200}),
        "ipo": under(micro_batch={"tokens": 3200}),
        "sft": under(micro_batch={"tokens": 3300}, precision={"weights": "bfloat16"}),
    }
    precision, batch = unfair_lines(differences(arms))
    assert precision == (
        "unfair: not the same precision: weights float32 (ppo, dpo, ipo) against weights bfloat16 "
        "(sft)"
    )
    assert batch == (
        "unfair: not the same micro-batch tokens: tokens 6400 (ppo) against tokens 3200 (dpo, ipo) "
        "against tokens 3300 (sft)"
    )
    assert unfair_lines([]) == []


def test_only_finished_arms_are_compared():
    small = under(micro_batch={"tokens": 10})
    value = Comparison(
        methods={
            "ppo": MethodResult(conditions=under()),
            "dpo": MethodResult(conditions=small, failure="parity check failed"),
            "sft": MethodResult(),
        }
    )
    assert value.unequal_conditions() == []
    value.methods["dpo"].failure = None
    assert [difference.arms for difference in value.unequal_conditions()] == [("ppo", "dpo")]


def test_every_condition_has_a_title():
    assert list(LABELS) == list(Conditions.model_fields)
