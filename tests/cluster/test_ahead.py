"""Answers that are asked for in slices and a round early: seeds, settings, and what is saved."""

from __future__ import annotations

import pytest

from actors.answers import DroppedSample
from cluster.ahead import ANSWERS, DROPPED, Ahead, load_ahead, save_ahead, slice_seed
from cluster.config import RunConfig
from cluster.config_text import validate
from cluster.rollouts import part_seed
from cluster.sync import require_version
from trainers.data.errors import UserError


def config(**values):
    return validate(RunConfig, {"method": {"name": "ppo"}, **values})


def test_the_first_slice_has_the_rounds_seed_and_the_others_have_their_own():
    seeds = [slice_seed(1003, index) for index in range(8)]
    assert seeds[0] == 1003 and len(set(seeds)) == 8
    # Engines that share a slice must not draw what another slice's first engine draws.
    assert not set(seeds[1:]) & {part_seed(1003, number) for number in range(1, 8)}


@pytest.mark.parametrize("key", ["judge_slices", "off_policy_steps"])
@pytest.mark.parametrize(
    ("group", "name"), [("train", "time_slice"), ("rollout", "sleep")], ids=["slice", "sleep"]
)
def test_what_takes_turns_cannot_overlap(key, group, name):
    on = {"judge_slices": 2, "off_policy_steps": 1}[key]
    with pytest.raises(UserError, match=rf"overlap\.{key}={on}: with {group}\.{name} .*; set "):
        config(overlap={key: on}, **{group: {name: True}})
    config(overlap={key: on})
    config(**{group: {name: True}})


def test_pairs_that_are_made_are_refused():
    with pytest.raises(UserError, match=r"negatives\.rejected"):
        config(
            method={"name": "dpo"},
            overlap={"off_policy_steps": 1},
            negatives={"rejected": ["noisy"]},
        )


@pytest.mark.parametrize("key", ["judge_slices", "off_policy_steps"])
def test_a_judge_that_asks_the_policy_is_refused(key):
    on = {"judge_slices": 2, "off_policy_steps": 1}[key]
    asks = {"name": "claims", "labeler": "policy"}
    inside = {"name": "sum", "parts": [{"judge": {"name": "flipped", "judge": asks}}]}
    for judge in (asks, inside):
        with pytest.raises(UserError, match=rf"overlap\.{key}={on}: with judge\.labeler=policy"):
            config(overlap={key: on}, judge=judge)
        config(judge=judge)
    config(overlap={key: on}, judge={"name": "claims"})


def test_a_method_whose_prompts_depend_on_the_round_before_is_refused():
    steerlm = {"name": "steerlm"}
    with pytest.raises(UserError, match=r"off_policy_steps=1: what method\.name=steerlm asks"):
        config(method=steerlm, overlap={"off_policy_steps": 1})
    config(method=steerlm, overlap={"judge_slices": 2})


def test_the_cap_leaves_tokens_of_the_same_weights_alone():
    with pytest.raises(UserError, match=r"overlap\.importance_cap"):
        config(overlap={"importance_cap": 0.9})
    config(overlap={"importance_cap": 1.0})


def test_saved_answers_come_back_as_they_were(tmp_path, samples, make_scored):
    made = [
        ([make_scored(f"r2/{s.id}/{k}", s.id, 1.0).rollout for k in range(2)], [])
        for s in samples[:2]
    ]
    bad = [DroppedSample(samples[2].id, "too long")]
    ahead = Ahead(2, list(samples[:3]), made=[*made, ([], bad)])
    save_ahead(ahead, tmp_path)
    found = load_ahead(tmp_path)
    assert found is not None and found.number == 2 and found.samples == ahead.samples
    assert found.made == [([r for rollouts, _ in made for r in rollouts], bad)]
    assert not found.begun and load_ahead(tmp_path / "none") is None
    (tmp_path / DROPPED).write_text("{}")
    with pytest.raises(UserError, match=rf"{DROPPED}: missing or damaged"):
        load_ahead(tmp_path)
    assert (tmp_path / ANSWERS).is_file()


def test_answers_that_are_under_way_cannot_be_saved(tmp_path):
    with pytest.raises(AssertionError, match="settle"):
        save_ahead(Ahead(1, [], begun=[None]), tmp_path)  # type: ignore[list-item]


class FakeArm:
    name, version = "ppo", 5


def test_rollouts_are_exactly_as_old_as_they_should_be(make_scored):
    from dataclasses import replace

    from cluster.failures import RunStoppedError

    rollout = make_scored("r", "s", 1.0).rollout
    for version, behind in ((5, 0), (4, 1)):
        require_version(FakeArm, [replace(rollout, policy_version=version)], behind=behind)
    for version, behind in ((4, 0), (6, 0), (5, 1), (3, 1)):
        with pytest.raises(RunStoppedError, match=rf"from weights {version}, the last sync was 5"):
            require_version(FakeArm, [replace(rollout, policy_version=version)], behind=behind)
