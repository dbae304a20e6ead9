"""The example configurations: valid, short, and showing every value as it is by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import METHODS, CompareConfig, RunConfig
from cluster.config_text import read_yaml, validate
from cluster.seeds import read_orderings

EXAMPLES = Path(__file__).parents[2] / "examples"
ORDERINGS = EXAMPLES / "comparisons" / "orderings.yaml"


@pytest.mark.parametrize("name", ["compare", "ppo", "dpo", "nsft"])
def test_example_equals_the_defaults(name):
    path = EXAMPLES / f"{name}.yaml"
    values = read_yaml(path)
    if name == "compare":
        config, default = validate(CompareConfig, values, path.name), CompareConfig()
    else:
        config, default = validate(RunConfig, values, path.name), RunConfig(method=METHODS[name]())
    assert config.model_dump() == default.model_dump()
    assert values.keys() == default.model_dump().keys()
    assert leaves(values) == leaves(config.model_dump())
    lines = path.read_text().splitlines()
    assert len(lines) < 100
    assert max(map(len, lines)) <= 100


def leaves(values, prefix=""):
    """Dotted names of all values, so that a left-out key shows."""
    found = set()
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return found


@pytest.mark.parametrize(
    "path",
    sorted({*(EXAMPLES / "comparisons").glob("*.yaml")} - {ORDERINGS}),
    ids=lambda p: p.stem,
)
def test_arms_of_a_comparison_can_run(path):
    config = validate(CompareConfig, read_yaml(path), str(path))
    for name in config.arms:
        assert config.arm(name).name == name


def test_orderings_are_of_arms_that_the_comparisons_have():
    arms = {
        name
        for kind in ("methods", "judges")
        for name in read_yaml(EXAMPLES / "comparisons" / f"{kind}.yaml")["arms"]
    }
    for ordering in read_orderings(str(ORDERINGS)):
        assert {ordering.better, ordering.worse} <= {*arms, "base"}
