"""`judge` as a string and as a mapping: validation, built-in models, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import judges
from cluster.base_model import BuiltinModels
from cluster.config import RunConfig
from cluster.config_text import apply_overrides, read_yaml, to_yaml, validate
from rewards.config import (
    ClaimsConfig,
    CritiqueConfig,
    FlippedConfig,
    FunctionConfig,
    RandomConfig,
    SumConfig,
)
from trainers.data.errors import UserError

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
BUILT = BuiltinModels(Path("/b/honest"), Path("/b/base"), Path("/b/judge"), {})


def read(judge) -> RunConfig:
    return validate(RunConfig, {"method": {"name": "dpo"}, "judge": judge}, "run.yaml")


def message(judge) -> str:
    with pytest.raises(UserError) as caught:
        read(judge)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("reference", "config"),
    [
        ("random", RandomConfig()),
        ("my_judge:score", FunctionConfig(function="my_judge:score")),
        ("models/judge", CritiqueConfig(model="models/judge")),
        ({"name": "critique"}, CritiqueConfig()),
        (None, None),
    ],
)
def test_one_string_stands_for_the_usual_ones(reference, config):
    assert read(reference).judge == config


def test_a_folder_whose_name_has_a_colon_is_a_folder(tmp_path):
    (tmp_path / "a:b").mkdir()
    assert read(str(tmp_path / "a:b")).judge == CritiqueConfig(model=str(tmp_path / "a:b"))


def test_judges_nest():
    config = read(
        {
            "name": "sum",
            "parts": [
                {"weight": 0.5, "judge": {"name": "flipped", "judge": {"name": "claims"}}},
                {"judge": "random"},
            ],
        }
    )
    assert isinstance(config.judge, SumConfig)
    found = [type(part) for part in judges.parts(config.judge)]
    assert found == [SumConfig, FlippedConfig, ClaimsConfig, RandomConfig]
    assert validate(RunConfig, __import__("yaml").safe_load(to_yaml(config))) == config


@pytest.mark.parametrize(
    ("judge", "text"),
    [
        ({"name": "claims", "labler": "x"}, "unknown key 'judge.labler'; did you mean 'labeler'?"),
        (
            {"name": "sum", "parts": [{"judge": {"name": "rules", "answrs": 1}}]},
            "unknown key 'judge.parts.0.judge.answrs'; did you mean 'answers'?",
        ),
        (
            {"name": "rubric", "endpoint": {"url": "http://x/v1", "model": "m", "retry": 1}},
            "unknown key 'judge.endpoint.retry'; did you mean 'retries'?",
        ),
        (
            {"name": "flipped", "judge": "random", "shares": 1},
            "unknown key 'judge.shares'; did you mean 'share'?",
        ),
    ],
)
def test_unknown_keys_name_the_nearest(judge, text):
    assert text in message(judge)


@pytest.mark.parametrize(
    ("judge", "part"),
    [
        ({"name": "clams"}, "'claims'"),
        ({"name": "critique", "num_critiques": 3}, "repeats one critique"),
        ({"name": "claims", "splitter": "folder"}, "go together"),
        ({"name": "rubric"}, "judge.model or judge.endpoint"),
        ({"name": "rubric", "endpoint": {"url": "ftp://x", "model": "m"}}, "judge.endpoint.url"),
        ({"name": "flipped", "judge": "random", "share": 2}, "judge.share"),
        ({"name": "sum", "parts": []}, "judge.parts"),
    ],
)
def test_what_cannot_work_is_refused(judge, part):
    assert part in message(judge)


def test_settings_on_the_command_line():
    values = apply_overrides(
        {"method": {"name": "dpo"}}, ["--judge.name", "claims", "--judge.labeler=policy"]
    )
    assert validate(RunConfig, values).judge == ClaimsConfig(labeler="policy")


def test_built_in_models_are_filled_in():
    assert judges.resolve(None, BUILT) == CritiqueConfig(model="/b/judge")
    nested = read({"name": "sum", "parts": [{"judge": {"name": "claims"}}, {"judge": "random"}]})
    assert nested.judge is not None and judges.needs_builtin(nested.judge)
    resolved = judges.resolve(nested.judge, BUILT)
    assert resolved.folders == ("/b/honest",) and resolved.reward_model is None
    assert not judges.needs_builtin(resolved)
    assert not judges.needs_builtin(RandomConfig())


def test_the_critic_starts_from_the_reward_model_inside():
    inner = {"name": "flipped", "judge": {"name": "critique"}}
    judge = read({"name": "sum", "parts": [{"judge": "random"}, {"judge": inner}]}).judge
    assert judges.resolve(judge, BUILT).reward_model == "/b/judge"


@pytest.mark.parametrize(
    ("judge", "part"),
    [
        ({"name": "critique"}, "judge.model"),
        ({"name": "claims"}, "judge.labeler"),
        ({"name": "claims", "labeler": "policy"}, "judge.splitter"),
        ({"name": "flipped", "judge": {"name": "claims"}}, "judge.labeler"),
    ],
)
def test_what_knows_only_the_drawn_world_is_refused_on_other_data(judge, part):
    config = read(judge).judge
    assert config is not None
    assert part in str(judges.needs_drawn_world(config))
    assert judges.needs_drawn_world(CritiqueConfig(model="x")) is None


@pytest.mark.parametrize(
    ("judge", "part"),
    [
        ({"name": "claims", "labeler": "/no/such"}, "no such folder"),
        ({"name": "rubric", "model": "/no/such"}, "no such folder"),
        ({"name": "sum", "parts": [{"judge": "no_such_module:f"}]}, "no_such_module"),
        (
            {
                "name": "rubric",
                "endpoint": {"url": "http://x", "model": "m", "token_variable": "NO_SUCH_VARIABLE"},
            },
            "NO_SUCH_VARIABLE",
        ),
    ],
)
def test_what_is_missing_is_found_before_anything_starts(judge, part):
    config = read(judge).judge
    assert config is not None
    with pytest.raises(UserError, match=part):
        judges.check_judge(config)


@pytest.mark.parametrize("file", sorted(RECIPES.glob("judge_*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_is_valid_and_names_its_own_command(file):
    config = validate(RunConfig, read_yaml(file), str(file))
    assert config.judge is not None
    judges.check_judge(config.judge)
    command = f"# quartet train {config.method.name} --config examples/recipes/{file.name}"
    assert file.read_text().startswith(command)
    exempt = config.judge_check.min_accuracy == 0
    controls = {"random", "longest", "flipped"}
    assert exempt == (config.judge.name in controls)
