"""The first guess of the time left."""

from __future__ import annotations

import pytest

from cluster.base_model import WorldRecipe
from cluster.compare import expected_seconds
from cluster.config import CompareConfig


def test_what_is_cached_is_not_counted() -> None:
    config = CompareConfig()
    everything = expected_seconds(config, WorldRecipe(), only_base=False)
    cached = expected_seconds(config, None, only_base=False)
    built = expected_seconds(config, WorldRecipe(), only_base=True)
    assert everything == built | cached
    assert not set(built) & set(cached)


def test_an_arm_takes_its_evaluation_and_its_prompts() -> None:
    config = CompareConfig.model_validate(
        {
            "arms": {"nsft": {}, "longer": {"method": {"name": "ppo"}, "rounds": 3}},
            "rounds": 2,
            "rollout": {"num_prompts": 100},
            "eval": {"num_scenes": 500},
        }
    )
    expected = expected_seconds(config, None, only_base=False)
    assert expected["nsft"] == pytest.approx(500 * 0.016 + 2 * 100 * 0.045)
    assert set(expected) == {
        "start engines",
        "evaluate base model",
        "evaluate honest model",
        "nsft",
        "longer",
    }
    # PPO's critic is trained, reference and reward model are frozen.
    each = 0.045 + 0.06 + 2 * 0.01
    assert expected["longer"] == pytest.approx(500 * 0.016 + 3 * 100 * each)
