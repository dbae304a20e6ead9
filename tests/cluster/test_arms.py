"""Which arms a comparison has: known names, arms of one's own, and what neither may set."""

from __future__ import annotations

import pytest

from cluster.arms import CATALOGUE, DEFAULT_ARMS, expand_arms
from cluster.cli import _settings
from cluster.config import METHODS, CompareConfig
from cluster.config_text import validate
from rewards.config import RandomConfig
from trainers.config import DPOConfig, PPOConfig, SFTConfig
from trainers.data.errors import UserError


def config(*words: str, **values: object) -> CompareConfig:
    """As `quartet compare` reads its settings."""
    return validate(CompareConfig, _settings({"arms": DEFAULT_ARMS, **values}, None, list(words)))


def refusal(**values: object) -> str:
    with pytest.raises(UserError) as caught:
        validate(CompareConfig, values, "mine.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_method_is_a_known_arm_with_its_defaults():
    assert set(METHODS) < set(CATALOGUE)
    everything = validate(CompareConfig, {"arms": list(CATALOGUE)})
    for name, settings in METHODS.items():
        assert everything.arm(name).method == settings()
        assert everything.arm(name).name == name


def test_a_list_and_the_mapping_that_it_stands_for_are_one():
    assert config("--arms", "[sft, random]") == config(
        arms={"sft": None, "random": {"method": {"name": "dpo"}, "judge": "random"}}
    )


def test_a_setting_of_one_arm_leaves_the_others_there():
    given = config("--arms.ppo.method.kl_coef", "0.1")
    assert list(given.arms) == list(DEFAULT_ARMS)
    assert given.arms["ppo"].method == PPOConfig(kl_coef=0.1)


@pytest.mark.parametrize(
    "words",
    [
        ["--arms", "[dpo, ppo]", "--arms.ppo.method.kl_coef", "0.1"],
        ["--arms.ppo.method.kl_coef", "0.1", "--arms", "[dpo, ppo]"],
    ],
)
def test_a_list_and_a_setting_go_together_in_either_order(words):
    given = config(*words)
    assert list(given.arms) == ["dpo", "ppo"]
    assert given.arms["ppo"].method == PPOConfig(kl_coef=0.1)


def test_an_arm_of_ones_own_joins_the_default_ones():
    given = config("--arms.mild.method.name", "dpo", "--arms.mild.method.beta", "0.5")
    assert list(given.arms) == [*DEFAULT_ARMS, "mild"]
    assert given.arm("mild").method == DPOConfig(beta=0.5)
    assert given.arm("dpo").method == DPOConfig()


def test_an_arm_has_the_shared_settings_but_for_its_own():
    given = config(
        "--train.logprob_chunk",
        "64",
        "--arms.sft.train.micro_batch_size",
        "4",
        "--arms.sft.judge",
        "random",
    )
    sft, dpo = given.arm("sft"), given.arm("dpo")
    assert (sft.train.micro_batch_size, sft.train.logprob_chunk, sft.judge) == (
        4,
        64,
        RandomConfig(),
    )
    assert (dpo.train.micro_batch_size, dpo.train.logprob_chunk, dpo.judge) == (16, 64, None)
    assert sft.method == SFTConfig()


@pytest.mark.parametrize(
    ("arms", "text"),
    [
        (["ppo", "ppo"], "ppo stands there twice"),
        (["dpq"], "unknown arm 'dpq'; did you mean dpo? valid: ppo"),
        ({"mine": {"method": {"beta": 0.1}}}, "no arms.mine.method.name; "),
        ({"mine": {}}, "arms.mine: unknown arm"),
        ({"mine": {"method": {"name": "dqo"}}}, "arms.mine.method: "),
        ({"a-b": {"method": {"name": "dpo"}}}, "'a-b' cannot be an arm's name"),
        ({"../x": {"method": {"name": "dpo"}}}, "cannot be an arm's name"),
        ({"base": {"method": {"name": "dpo"}}}, "'base' cannot be an arm's name"),
        ({"ppo": 3}, "arms.ppo: a group of keys was expected (got 3)"),
        ({"ppo": {"trian": {}}}, "unknown key 'arms.ppo.trian'; did you mean 'train'?"),
        ({"ppo": {"train": {"bf61": True}}}, "unknown key 'arms.ppo.train.bf61'; did you mean"),
        ({"ppo": {"rounds": 0}}, "arms.ppo.rounds: input should be greater"),
        ({"ppo": {"seed": 1}}, "arms.ppo.seed: is the same for all arms"),
        ({"ppo": {"model": "x"}}, "arms.ppo.model: is the same for all arms"),
        ({"ppo": {"method": {"name": "dpo"}}}, "arms.ppo.method.name=dpo: this arm's name"),
        ({"random": {"judge": "x"}}, "arms.random.judge=x: this arm's name stands for random"),
        ({"dpo": {"train": {"reference": "adapter_off"}}}, "arms.dpo: train.reference=adapter_off"),
        ({"dpo": {"train": {"num_ranks": 2}}}, "arms.dpo.train.num_ranks: all arms run in the"),
        ({}, "arms: "),
        (7, "arms: a list of names or a mapping"),
    ],
)
def test_what_cannot_be_an_arm(arms, text):
    assert text in refusal(arms=arms)


def test_what_a_known_name_stands_for_may_be_repeated():
    random = {**CATALOGUE["random"], "method": {"name": "dpo", "beta": 0.2}}
    assert expand_arms({"random": random}) == {"random": random}
    assert CATALOGUE["random"]["method"] == {"name": "dpo"}
