"""Made pairs: settings that fit together, which answers are on which side, what needs a judge."""

from __future__ import annotations

import pytest

from cluster.config import RunConfig
from cluster.config_text import validate
from cluster.negatives import _side, best_of_each
from cluster.run import check_inputs
from cluster.sources import DrawnPrompts, annotated
from cluster.writer import writer_folder
from rewards.critique import quality
from trainers.data.errors import UserError
from trainers.data.records import BY_SOURCE
from trainers.pairs import mine_pairs
from trainers.roles import copies_in_loop


def config(**values) -> RunConfig:
    return validate(RunConfig, {"method": {"name": "dpo"}, **values}, "run.yaml")


def refused(**values) -> str:
    with pytest.raises(UserError) as caught:
        check_inputs(config(**values))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_settings_that_make_no_pairs_are_refused():
    assert "need a judge" in refused(negatives={"rejected": ["policy"]})
    noisy = {"rejected": ["noisy"]}
    assert "give a step" in refused(negatives={**noisy, "noise_steps": []})
    assert "less than 1000" in refused(negatives={**noisy, "noise_steps": [1000]})
    assert "method.name=ppo trains on scores" in refused(method={"name": "ppo"}, negatives=noisy)
    wide = {"name": "dpo", "pairs": {"margin": 2.0}}
    assert "method.pairs.margin=2" in refused(method=wide, negatives=noisy)
    assert "negatives.rejected" in refused(negatives={"rejected": ["noise"]})
    data = {"chosen": "data", "rejected": ["data"]}
    assert "drawn scenes have no rejected answer" in refused(negatives=data)


def test_a_moving_average_needs_weights_of_its_own():
    cached = {"reference": "cached"}
    assert "method.ema_rate=0.5 needs the reference's own weights" in refused(
        method={"name": "sapo"}, train=cached
    )
    segment = {"chosen": "data", "rejected": ["segment"], "segment_writer": "reference"}
    assert "needs the reference's own weights" in refused(negatives=segment, train=cached)
    assert "method.name=sft has no reference" in refused(method={"name": "sft"}, negatives=segment)


@pytest.mark.parametrize(
    ("negatives", "judge", "annotation", "policy"),
    [
        ({}, True, False, True),
        ({"rejected": ["noisy"]}, False, False, True),  # SeVa
        ({"chosen": "data", "rejected": ["noisy", "injected"]}, False, True, False),  # BPO
        ({"chosen": "data", "rejected": ["segment"]}, False, True, False),  # SAPO
        ({"chosen": "data", "rejected": ["policy"]}, False, True, True),  # GT-DPO
        ({"chosen": "judge", "rejected": ["noisy"]}, True, False, True),
        ({"chosen": "policy", "rejected": ["noisy"], "critiques": True}, True, False, True),
        ({"chosen": "policy", "rejected": ["injected"]}, False, True, True),
    ],
)
def test_what_a_source_needs(negatives, judge, annotation, policy):
    settings = config(negatives=negatives).negatives
    needs = (settings.needs_judge, settings.needs_annotation, settings.needs_policy)
    assert needs == (judge, annotation, policy)


def test_copies_in_the_loop_without_a_judge_and_with_a_writer():
    from trainers.nsft import NSFT

    assert copies_in_loop(NSFT.copies) == ("policy", "rollout_engine", "judge")
    assert copies_in_loop(NSFT.copies, judged=False) == ("policy", "rollout_engine")
    assert copies_in_loop(NSFT.copies, written=True)[-1] == "writer"


def test_drawn_prompts_with_the_answer_of_a_careful_annotator(store):
    plain = DrawnPrompts(store, 20, 0).round(1)
    assert all(sample.chosen is None for sample in plain)
    for sample in map(annotated, plain):
        prompt = sample.prompt[-1].text
        assert quality(sample.truth, sample.kind, prompt, sample.chosen) == 0.0
    again = DrawnPrompts(store, 20, 0, annotated=True).round(1)
    assert [s.chosen for s in again] == [annotated(s).chosen for s in plain]
    assert [s.images for s in again] == [s.images for s in plain]


def test_the_best_of_each_sample_and_never_a_failure(make_scored):
    judged = [
        make_scored("a", "s", 1.0),
        make_scored("b", "s", 2.0),
        make_scored("c", "s", None),
        make_scored("d", "t", None),
    ]
    assert [rollout.id for rollout in best_of_each(judged)] == ["b"]


def test_sides_are_pairs_like_any_others(make_scored):
    import random

    right, wrong = make_scored("right", "s", -3.0), make_scored("wrong", "s", 5.0)
    sides = [_side(right.rollout, 1.0, right), _side(wrong.rollout, 0.0, wrong)]
    assert [item.judge for item in sides] == [BY_SOURCE] * 2
    # What a judge said stays beside it, and has no part in which is preferred.
    assert sides[1].components == {"hand": 5.0}
    mined = mine_pairs(
        sides,
        margin=0.5,
        max_pairs_per_prompt=2,
        strategy="best_worst",
        length_balance=False,
        rng=random.Random(0),
    )
    (pair,) = mined.pairs
    assert (pair.chosen.rollout.id, pair.margin) == ("right", 1.0)


def test_one_text_model_a_run(tmp_path):
    assert writer_folder(config()) is None
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            (tmp_path / name / file).write_text("{}")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    nsft = {"name": "nsft", "corrections": {"writer": "llm", "model": one}}
    injected = {"chosen": "data", "rejected": ["injected"], "injector": two}
    assert writer_folder(config(method=nsft)) == one
    assert writer_folder(config(negatives=injected)) == two
    assert "differ" in refused(method=nsft, negatives={**injected, "critiques": True})
    (tmp_path / "two" / "model.safetensors").unlink()
    assert f"negatives.injector={two}: no safetensors weights" in refused(negatives=injected)
