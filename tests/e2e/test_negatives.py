"""Made pairs on the real stack: each recipe of examples/recipes, from a random tiny model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.config import RunConfig
from cluster.config_text import merge, read_yaml, validate
from trainers.data.record_file import read_records
from trainers.data.records import BY_SOURCE, Correction, ScoredRollout

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.timeout(900)]

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
PROMPTS = 8
SMALL: dict[str, Any] = {
    "rounds": 2,
    "rollout": {"num_prompts": PROMPTS, "num_rollouts_per_prompt": 2, "max_tokens": 24},
    "eval": {"num_scenes": 2, "num_curve_scenes": 0},
    "train": {"parity_rollouts": 6},
    "judge_check": {"min_accuracy": 0.0},  # a function of words' numbers: it knows no scenes
    "num_threads": 1,
}


def run(stack, model: str, recipe: str, output_name: str = "", **changes: Any):
    """A short run of a recipe; its result, its judged rollouts of both rounds, and its folder."""
    from cluster.run import train
    from trainers.comparison import load

    output = stack.root / (output_name or recipe)
    values = merge(read_yaml(RECIPES / f"{recipe}.yaml"), {**SMALL, "model": model})
    config = validate(RunConfig, merge(values, {"output": str(output), **changes}), recipe)
    assert train(config) == 0
    (folder,) = output.iterdir()
    result = load(folder / "compare.json").methods[config.method.name]
    assert result.failure is None
    points = [point for point in result.curve if point.round]
    assert len(points) == 2 and all(point.parity < 1e-4 for point in points)
    judged = [
        [item for item in read_records(file).records if isinstance(item, ScoredRollout)]
        for file in sorted((folder / "rounds").iterdir())
    ]
    return result, judged, folder


def sides(judged) -> Counter[tuple[str, float | None]]:
    return Counter((item.rollout.source, item.score) for item in judged)


def test_seva_needs_the_rollout_worker_only(stack, tiny_model):
    result, rounds, _ = run(stack, tiny_model, "seva")
    assert result.copies_train == ["policy", "reference"]
    assert result.copies_loop == ["policy", "reference", "rollout_engine"]
    assert result.judge_calls == 0
    for judged in rounds:
        # 2 answers to the clean image, and 2 to each of the two distorted ones
        assert sides(judged) == {("policy", 1.0): 2 * PROMPTS, ("noisy", 0.0): 4 * PROMPTS}
        assert {item.judge for item in judged} == {BY_SOURCE}
    assert result.curve[-1].extra["steps"] >= 1
    assert result.curve[-1].score is None  # nobody scored anything


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            "bpo",
            {("data", 1.0): PROMPTS, ("noisy", 0.0): 2 * PROMPTS, ("injected", 0.0): PROMPTS},
        ),
        ("povid", {("data", 1.0): PROMPTS, ("injected", 0.0): PROMPTS}),
        ("sapo", {("data", 1.0): PROMPTS, ("segment", 0.0): PROMPTS}),
        ("gt_dpo", {("data", 1.0): PROMPTS, ("policy", 0.0): 2 * PROMPTS}),
    ],
)
def test_recipes_train_on_what_they_say(stack, tiny_model, recipe, expected):
    result, rounds, _ = run(stack, tiny_model, recipe)
    for judged in rounds:
        assert sides(judged) == expected
        right = {i.rollout.sample_id: i.rollout for i in judged if i.rollout.source == "data"}
        for item in judged:
            if item.rollout.source in ("injected", "segment"):
                chosen = right[item.rollout.sample_id]
                assert item.rollout.token_ids[-1] == chosen.token_ids[-1]  # EOS
    for point in (point for point in result.curve if point.round):
        assert point.extra["steps"] >= 1
        # Every round starts with the policy as its reference, but for the moving average.
        if recipe != "sapo" or point.round == 1:
            assert point.extra["first/loss"] == pytest.approx(0.693147, abs=1e-4)
    if recipe == "sapo":
        second = result.curve[-1].extra
        assert second["replay/size"] > second["pairs/num"]
        assert abs(second["first/loss"] - 0.693147) > 1e-6


@pytest.mark.slow
def test_nsft_corrects_short_answers_by_template(stack, tiny_model):
    changes = {
        "judge": "tests.e2e.judge_functions:length",
        "method": {
            "name": "nsft",
            "pairs": {"margin": 0.0},
            "corrections": {"writer": "short_answer", "short_words": 30},
        },
    }
    result, _, folder = run(stack, tiny_model, "short_answers", **changes)
    written = [
        record
        for file in sorted((folder / "corrections").iterdir())
        for record in read_records(file).records
    ]
    counted = sum(point.extra["corrections"] for point in result.curve if point.round)
    assert len(written) == counted > 0
    for record in written:
        assert isinstance(record, Correction) and record.writer == "short_answer"
        assert Counter(turn.text for turn in record.turns[1::2]) == {"yes": 1, "no": 1}


@pytest.mark.slow
def test_a_synthesised_file_is_trained_on(stack, tiny_model, tmp_path):
    import pyarrow.parquet

    from cluster.synthesize import synthesize

    out = tmp_path / "pairs.parquet"
    values = {
        **SMALL,
        "output": str(stack.root / "synthesize"),
        "model": tiny_model,
        "judge": "tests.e2e.judge_functions:length",
        "rollout": {"num_prompts": 24, "num_rollouts_per_prompt": 4, "max_tokens": 24},
        "method": {"name": "dpo", "pairs": {"margin": 0.0}},
    }
    assert synthesize(validate(RunConfig, values), out) == 0
    pairs = pyarrow.parquet.read_metadata(out).num_rows
    assert pairs >= 3  # of 24: answers of a random model are often cut off, so never chosen
    changes = {"data": {"path": str(out)}, "judge": None}
    result, rounds, _ = run(stack, tiny_model, "offline_dpo", **changes)
    for judged in rounds:
        number = min(pairs, PROMPTS)
        assert sides(judged) == {("data", 1.0): number, ("data", 0.0): number}
        # The judge of the file counted characters, and the longest answer was chosen.
        by_sample: dict[str, dict[float, int]] = {}
        for item in judged:
            length = len(item.rollout.text)
            by_sample.setdefault(item.rollout.sample_id, {})[item.score] = length
        assert all(length[1.0] > length[0.0] for length in by_sample.values())
    assert result.curve[-1].extra["first/loss"] == pytest.approx(0.693147, abs=1e-4)


@pytest.mark.slow
def test_a_text_model_writes_the_turns(stack, tiny_model, text_model):
    changes = {
        "judge": "tests.e2e.judge_functions:length",
        "method": {
            "name": "nsft",
            "pairs": {"margin": 0.0},
            "corrections": {"writer": "llm", "model": text_model},
        },
        "rollout": {"num_prompts": 16, "num_rollouts_per_prompt": 4, "max_tokens": 24},
    }
    result, _, folder = run(stack, tiny_model, "short_answers", "written", **changes)
    assert result.copies_loop == ["policy", "rollout_engine", "judge", "writer"]
    assert result.bytes_by_copy["writer"]["kv_cache"] > 0
    # What it says is what it was taught, and that is two turns; at its temperature seldom another.
    points = [point.extra for point in result.curve if point.round]
    written = sum(point["corrections"] for point in points)
    assert written > 0 and written >= sum(point["corrections_failed"] for point in points)
    for file in sorted((folder / "corrections").iterdir()):
        for record in read_records(file).records:
            assert isinstance(record, Correction) and record.writer == "llm"
            texts = [turn.text for turn in record.turns]
            assert dict(zip(texts[::2], texts[1::2], strict=True)) == {
                "is there a red circle ?": "no",
                "is there a blue square ?": "yes",
            }
    # Who comes next in the same processes has no such copy.
    del changes["method"]["corrections"]["model"]
    changes["method"]["corrections"]["writer"] = "short_answer"
    result, *_ = run(stack, tiny_model, "short_answers", "unwritten", **changes)
    assert "writer" not in result.bytes_by_copy


@pytest.mark.slow
def test_a_text_model_that_injects_nothing_stops_the_run(stack, tiny_model, text_model):
    from cluster.run import train
    from trainers.comparison import load

    values = merge(read_yaml(RECIPES / "bpo.yaml"), {**SMALL, "model": tiny_model})
    output = str(stack.root / "nothing")
    values = merge(values, {"output": output, "negatives": {"injector": text_model}})
    assert train(validate(RunConfig, values)) == 1
    (folder,) = Path(output).iterdir()
    arm = load(folder / "compare.json").methods["dpo"]
    assert "0 lines of the reply start with 'Rewritten:'" in arm.failure
    assert sum(arm.dropped.values()) == PROMPTS
