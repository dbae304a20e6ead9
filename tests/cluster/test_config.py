"""Settings: every wrong key or value is one line that names it and what would be right."""

from __future__ import annotations

import pytest

from cluster.config import QUICK, CompareConfig, RunConfig
from cluster.config_text import apply_overrides, read_yaml, to_yaml, validate
from rewards.config import RandomConfig
from trainers.config import DPOConfig, NSFTConfig, PPOConfig
from trainers.data.errors import UserError


def message(model, values, source="run.yaml") -> str:
    with pytest.raises(UserError) as caught:
        validate(model, values, source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_key_names_the_nearest():
    text = message(CompareConfig, {"rollout": {"num_promts": 3}})
    assert text == "run.yaml: unknown key 'rollout.num_promts'; did you mean 'num_prompts'?"


@pytest.mark.parametrize("values", [{"arms": {"a\nb": 1}}, {"arms": {"x": {"name": "a\nb"}}}])
def test_a_line_break_in_a_key_stays_out_of_the_line(values):
    assert "arms" in message(CompareConfig, values)


def test_unknown_key_far_from_any_lists_all():
    text = message(CompareConfig, {"eval": {"qqq": 3}})
    assert "unknown key 'eval.qqq'; valid: keep_best, num_curve_scenes, num_scenes" in text


def test_unknown_key_of_a_method_is_looked_up_in_that_method():
    text = message(RunConfig, {"method": {"name": "dpo", "betta": 0.1}})
    assert "unknown key 'method.betta'; did you mean 'beta'?" in text
    text = message(RunConfig, {"method": {"name": "dpo", "pairs": {"margn": 0.1}}})
    assert "unknown key 'method.pairs.margn'; did you mean 'margin'?" in text
    text = message(CompareConfig, {"arms": {"ppo": {"method": {"kl_coeff": 0.1}}}})
    assert "unknown key 'arms.ppo.method.kl_coeff'; did you mean 'kl_coef'?" in text
    text = message(CompareConfig, {"arms": {"nsft": {"method": {"pairs": {"margn": 0.1}}}}})
    assert "unknown key 'arms.nsft.method.pairs.margn'; did you mean 'margin'?" in text


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"rounds": 0}, ("rounds", "greater than or equal to 1", "got 0")),
        ({"rollout": {"temperature": 3.0}}, ("rollout.temperature", "less than or equal to 2")),
        ({"rollout": {"num_prompts": "many"}}, ("rollout.num_prompts", "integer", "'many'")),
        ({"train": 3}, ("train", "got 3")),
    ],
)
def test_bad_value_names_key_and_value(values, parts):
    text = message(CompareConfig, values)
    for part in parts:
        assert part in text


def test_unknown_method():
    text = message(RunConfig, {"method": {"name": "reinforce"}})
    assert "method" in text and "'reinforce'" in text


def test_missing_method():
    assert "method" in message(RunConfig, {})


def test_overrides():
    values = apply_overrides(
        {"rollout": {"num_prompts": 8}},
        [
            "--rollout.num_prompts",
            "16",
            "--arms.ppo.method.kl-coef=1e-1",
            "--arms=[ppo, dpo]",
            "--quick=true",
        ],
    )
    config = validate(CompareConfig, values)
    assert config.rollout.num_prompts == 16
    assert list(config.arms) == ["ppo", "dpo"]
    assert config.arms["ppo"].method == PPOConfig(kl_coef=0.1)
    assert config.quick is True


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["rollout"], "'rollout': options look like"),
        (["--rounds"], "--rounds: a value is missing"),
        (["--rounds.more", "1"], "rounds is a value, not a group"),
    ],
)
def test_bad_overrides(words, part):
    with pytest.raises(UserError, match=part):
        apply_overrides({"rounds": 3}, words)


def test_a_value_that_is_no_yaml_is_one_line():
    with pytest.raises(UserError, match="--name"):
        apply_overrides({}, ["--name", "[a"])


def test_overrides_do_not_change_the_defaults():
    apply_overrides({**QUICK}, ["--rollout.num_prompts", "7"])
    assert QUICK["rollout"]["num_prompts"] == 48


def test_quick_is_a_valid_change():
    assert validate(CompareConfig, QUICK).quick


@pytest.mark.parametrize(
    "config",
    [CompareConfig(), RunConfig(method=DPOConfig(beta=0.3), model="a", seed=4)],
    ids=["compare", "run"],
)
def test_yaml_round_trip(config, tmp_path):
    text = to_yaml(config)
    assert len(text.splitlines()) < 100
    (tmp_path / "c.yaml").write_text(text)
    assert validate(type(config), read_yaml(tmp_path / "c.yaml")) == config


@pytest.mark.parametrize(
    ("content", "part"),
    [(None, "cannot be read"), ("a: [", "not YAML"), ("- a", "mapping of keys")],
)
def test_bad_files(content, part, tmp_path):
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=part) as caught:
        read_yaml(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_file_changes_nothing(tmp_path):
    (tmp_path / "c.yaml").write_text("# all defaults\n")
    assert validate(CompareConfig, read_yaml(tmp_path / "c.yaml")) == CompareConfig()


def test_the_random_arm_is_dpo_by_chance():
    config = CompareConfig(seed=3)
    arm = config.arm("random")
    assert arm.judge == RandomConfig() and arm.method == DPOConfig() and arm.seed == 3
    assert arm.judge_check.min_accuracy == 0  # a control is exempt, by its settings
    assert config.arm("dpo").judge_check.min_accuracy == 0.7
    assert config.arm("nsft").judge is None and config.arm("nsft").method == NSFTConfig()


def test_adapter_off_needs_adapters():
    text = message(CompareConfig, {"arms": ["ppo"], "train": {"reference": "adapter_off"}})
    assert text.startswith("run.yaml: train.reference=adapter_off needs train.lora_rank above 0")
    assert "train.reference=cached" in text


@pytest.mark.parametrize(
    ("setting", "value"),
    [("lora_alpha", 8.0), ("lora_vision", True), ("lora_sync", "adapter"), ("lora_alpha", 0.0)],
)
def test_settings_of_adapters_need_adapters(setting, value):
    text = message(CompareConfig, {"train": {setting: value}})
    assert f"train.{setting}" in text
    assert ("above 0" if value else "greater than 0") in text


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        ({}, "needs train.lora_rank above 0"),
        ({"lora_rank": 4, "zero_stage": 3}, "needs train.zero_stage 0, 1 or 2"),
        ({"lora_rank": 4, "time_slice": True}, "leave train.time_slice=false"),
    ],
)
def test_a_critic_on_the_policys_base(train, reason):
    method = {"method": {"name": "ppo"}}
    text = message(RunConfig, {**method, "train": {"critic": "shared_base", **train}})
    assert text.startswith("run.yaml: train.critic=shared_base ") and reason in text
    config = validate(RunConfig, {**method, "train": {"critic": "shared_base", "lora_rank": 4}})
    assert config.train.critic == "shared_base"


@pytest.mark.parametrize("name", ["ppo", "nsft", "sft"])
def test_adapter_off_fits_a_reference_that_stays_the_base(name):
    train = {"lora_rank": 8, "reference": "adapter_off"}
    config = validate(RunConfig, {"method": {"name": name}, "train": train})
    assert config.train.reference == "adapter_off"


@pytest.mark.parametrize("arms", [["dpo"], ["ppo", "random"]])
def test_adapter_off_is_refused_where_the_reference_moves(arms):
    train = {"lora_rank": 8, "reference": "adapter_off"}
    text = message(RunConfig, {"method": {"name": "dpo"}, "train": train})
    assert text.startswith("run.yaml: train.reference=adapter_off does not fit method.name=dpo")
    text = message(CompareConfig, {"arms": arms, "train": train})
    assert f"arms.{arms[-1]}: train.reference=adapter_off does not fit" in text
    assert "train.reference=cached" in text


@pytest.mark.parametrize("name", ["ppo", "dpo", "nsft", "sft"])
@pytest.mark.parametrize("rank", [0, 8])
def test_cached_fits_every_method(name, rank):
    train = {"lora_rank": rank, "reference": "cached"}
    assert validate(RunConfig, {"method": {"name": name}, "train": train})


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"seed: 1\xe2(\n")
    with pytest.raises(UserError, match=r"bad.yaml: not YAML"):
        read_yaml(tmp_path / "bad.yaml")
