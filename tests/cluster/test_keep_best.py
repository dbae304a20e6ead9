"""`eval.keep_best`: which round wins, what is refused, and scenes of its own for the choice."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from cluster.best import HIGHER_IS_BETTER, BestRound
from cluster.config import EvalConfig, RunConfig
from cluster.config_text import validate
from cluster.heldout import HeldOut
from cluster.replay import replay_config
from trainers.data.errors import UserError


@pytest.mark.parametrize(
    ("metric", "values", "winner"),
    [
        ("chair_i", [0.3, 0.1, 0.2], 1),
        ("recall", [0.3, 0.1, 0.9], 2),
        ("chair_i", [0.2, 0.2, 0.2], 0),  # of equal ones the earlier
        ("chair_i", [math.nan, 0.4, math.nan], 1),  # captions that name nothing are not good
        ("chair_i", [math.nan, None], None),
    ],
)
def test_which_round_wins(tmp_path, metric, values, winner):
    best, found = BestRound(SimpleNamespace(folder=tmp_path), metric), None
    for number, value in enumerate(values):
        if best.is_better(value):
            best.value, found = value, number
    assert found == winner


def test_every_metric_has_a_direction():
    field = EvalConfig.model_fields["keep_best"].annotation
    assert set(HIGHER_IS_BETTER) == set(field.__args__[0].__args__)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eval": {"keep_best": "recall", "num_curve_scenes": 0}}, "eval.num_curve_scenes above 0"),
        ({"eval": {"keep_best": "recall"}, "data": {"path": "x.jsonl"}}, "ground truth"),
        ({"method": {"name": "sft", "target": "data"}}, "needs data.path"),
    ],
)
def test_what_cannot_work_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        validate(RunConfig, {"method": {"name": "sft"}, **values}, "run.yaml")


def test_a_replay_does_not_compare_rounds():
    recorded = validate(RunConfig, {"method": {"name": "sft"}, "eval": {"keep_best": "recall"}})
    assert replay_config(recorded, "sft", None, {}, "run").eval.keep_best is None
    with pytest.raises(UserError, match=r"eval\.keep_best"):
        replay_config(recorded, "sft", None, {"eval": {"keep_best": "recall"}}, "run")


def test_scenes_that_choose_the_round_are_not_those_that_are_reported(store):
    shared, apart = HeldOut(store, 6, 4), HeldOut(store, 6, 4, separate_curve=True)
    assert shared.curve == shared.captions[:4]
    assert apart.captions == shared.captions and apart.questions == shared.questions
    reported = {image for sample in apart.captions for image in sample.images}
    assert len(apart.curve) == 4
    assert not reported & {image for sample in apart.curve for image in sample.images}
