"""Judges without a model: what a user's function may do wrong, and chance."""

from __future__ import annotations

import math
import sys
import types

import numpy as np
import pytest
from PIL import Image

from rewards.base import JudgeItem, scored
from rewards.rules import FunctionJudge, RandomJudge, load_function
from trainers.data.errors import UserError


@pytest.fixture
def module(monkeypatch):
    """A module of judge functions, importable by name."""
    made = types.ModuleType("judges_by_hand")
    monkeypatch.setitem(sys.modules, "judges_by_hand", made)
    return made


@pytest.fixture
def items(samples, make_scored):
    return [
        JudgeItem(sample=s, rollout=make_scored(f"r{i}", s.id, 0.0, text="x" * i).rollout)
        for i, s in enumerate(samples[:3], start=1)
    ]


def judge(module, store, function):
    module.f = function
    return FunctionJudge("judges_by_hand:f", str(store.root))


def test_the_function_gets_prompt_response_images_and_sample(module, store, items):
    seen = []

    def f(*, prompt, response, images, sample):
        seen.append((prompt, response, images[0], sample.id))
        return len(response)

    judgements = judge(module, store, f).judge(items)
    assert [judgement.score for judgement in judgements] == [1.0, 2.0, 3.0]
    prompt, response, image, id = seen[0]
    assert (prompt, response, id) == (items[0].sample.prompt[-1].text, "x", items[0].sample.id)
    assert isinstance(image, Image.Image) and image.mode == "RGB"


def test_what_it_raises_is_that_items_failure(module, store, items):
    def f(*, response, **rest):
        if len(response) == 2:
            raise KeyError("color")
        return 1

    judgements = judge(module, store, f).judge(items)
    assert [judgement.score for judgement in judgements] == [1.0, None, 1.0]
    assert judgements[1].failure == "judges_by_hand:f raised KeyError: 'color'"


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan")])
def test_a_score_that_is_not_finite_is_a_failure_not_a_0(module, store, items, value):
    one = judge(module, store, lambda **rest: value)
    results = scored(items, one.judge(items), one.name)
    assert all(item.score is None and "returned" in item.failure for item in results)
    assert all(item.judge == "judges_by_hand:f" for item in results)


@pytest.mark.parametrize("value", [None, "good", [1.0, 2.0]])
def test_what_is_not_a_number_is_a_failure(module, store, items, value):
    judgements = judge(module, store, lambda **rest: value).judge(items)
    assert all(item.score is None and "Error" in item.failure for item in judgements)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no-colon", "module:function"),
        (":f", "module:function"),
        ("no_such_module_anywhere:f", "run from the folder that holds it"),
        ("math:no_such", "math has no no_such"),
        ("math:pi", "not a function"),
    ],
)
def test_a_wrong_reference_is_one_line(reference, message):
    with pytest.raises(UserError) as caught:
        load_function(reference)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert repr(reference) in str(caught.value)


def test_a_function_of_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_own_judge.py").write_text("def f(**rest):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert load_function("my_own_judge:f")() == 1.0


def test_chance_is_fixed_by_seed_rollout_and_text(items):
    first = [j.score for j in RandomJudge(0).judge(items)]
    assert first == [j.score for j in RandomJudge(0).judge(items)]
    assert first[::-1] == [j.score for j in RandomJudge(0).judge(items[::-1])]
    assert first != [j.score for j in RandomJudge(1).judge(items)]
    assert len(set(first)) == len(first)


def test_chance_is_a_standard_normal(samples, make_scored):
    items = [
        JudgeItem(sample=samples[0], rollout=make_scored(f"r{i}", samples[0].id, 0.0).rollout)
        for i in range(2000)
    ]
    values = np.array([j.score for j in RandomJudge(0).judge(items)])
    # standard errors 0.022 and 0.016
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.07
