"""Every judge on the real stack, and the verbs that make and measure reward models.

The built-in models are trained for a few steps only: what is checked is that every part does its
work, not that the judges are good.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.config import RunConfig
from cluster.config_text import merge, read_yaml, validate
from tests.e2e.rating_server import rating_server
from trainers.data.record_file import read_records
from trainers.data.records import ScoredRollout

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.deepspeed,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]
RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
SMALL: dict[str, Any] = {
    "rounds": 1,
    "rollout": {"num_prompts": 8, "num_rollouts_per_prompt": 4, "max_tokens": 24},
    "eval": {"num_scenes": 4, "num_curve_scenes": 0},
    "train": {"parity_rollouts": 4},
    "judge_check": {"min_accuracy": 0.0},
    "data": {"max_dropped_share": 0.9},
    "num_threads": 1,
}


@pytest.fixture(scope="module")
def world(stack):
    """The built-in models of a few steps, in place of the default ones."""
    from cluster import base_model
    from cluster.base_model import WorldRecipe
    from tests.e2e.conftest import tiny_recipe

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cluster.run.WorldRecipe", lambda: tiny_recipe())
        patch.setattr("cluster.reward.WorldRecipe", lambda: tiny_recipe())
        patch.setattr("cluster.reward.Session", stack_session(stack))
        from cluster.console import Console

        with Console(stack.root / "build.log", interactive=False) as console:
            before, stack.session.console = stack.session.console, console
            stack.built = base_model.ensure(stack.session, tiny_recipe())
            stack.session.console = before
        assert WorldRecipe is not None
        yield stack


def stack_session(stack):
    import cluster.run

    return cluster.run.Session


def train(stack, values: dict[str, Any], output: str):
    """Exit code, the arm's result, its judged rollouts and its folder."""
    from cluster import run
    from trainers.comparison import load

    values = merge(merge(values, SMALL), {"output": str(stack.root / output)})
    if "pairs" in values["method"] or values["method"]["name"] in ("dpo", "nsft"):
        values["method"] = merge(values["method"], {"pairs": {"margin": 0.0}})
    code = run.train(validate(RunConfig, values, output))
    (folder,) = (stack.root / output).iterdir()
    result = load(folder / "compare.json").methods[values["method"]["name"]]
    judged = [
        record
        for file in sorted((folder / "rounds").glob("*.msgpack"))
        for record in read_records(file).records
        if isinstance(record, ScoredRollout)
    ]
    return code, result, judged, folder


@pytest.mark.parametrize("recipe", ["critique", "claims", "rules", "flipped", "longest", "rubric"])
def test_the_recipes_run(world, recipe):
    values = read_yaml(RECIPES / f"judge_{recipe}.yaml")
    with rating_server() as url:
        if recipe == "rubric":
            values["judge"]["endpoint"]["url"] = url
        code, result, judged, _ = train(world, values, f"recipe-{recipe}")
    assert code == 0 and result.failure is None and len(judged) == 32
    scores = [item.score for item in judged if item.score is not None]
    assert scores and len({item.judge for item in judged}) == 1
    extra = result.curve[-1].extra
    if recipe == "critique":
        assert {"dense/reward", "dense/unplaced", "judge/unparsed"} <= extra.keys()
        assert "reward" in result.bytes_by_copy
    if recipe == "claims":
        assert all(score <= 0 and score == int(score) for score in scores)
        assert extra["judge/claims"] > 0 and "judge_engine" in result.bytes_by_copy
        assert all(item.critique.findings for item in judged if item.score is not None)
    if recipe == "rules":
        assert {"judge/critique", "judge/rules", "judge/rules/length"} <= extra.keys()
        for item in judged:
            if item.score is not None:
                parts = item.components
                assert item.score == pytest.approx(parts["critique"] + parts["rules"])
    if recipe == "flipped":
        assert 0 <= extra["judge/flipped"] <= 1
    if recipe == "longest":
        assert all(i.score == len(i.rollout.text.split()) for i in judged)
    if recipe == "rubric":
        assert set(scores) <= set(range(7))
        assert all("Rating:" in item.critique.text for item in judged)
    # Every token of every answer knows its place.
    for item in judged:
        ends = item.rollout.token_ends
        assert len(ends) == len(item.rollout.token_ids) and list(ends) == sorted(ends)
        assert not ends or ends[-1] == len(item.rollout.text)


def test_the_policy_labels_its_own_claims(world):
    values = {"method": {"name": "dpo"}, "judge": {"name": "claims", "labeler": "policy"}}
    code, result, judged, _ = train(world, values, "policy-labels")
    assert code == 0
    assert any(item.score is not None for item in judged)
    assert "judge_engine" not in result.bytes_by_copy  # no second engine


def test_a_judge_that_does_not_know_good_from_bad_stops_the_run(world, capsys):
    values = {
        "method": {"name": "sft"},
        "judge": {"name": "longest"},
        "judge_check": {"min_accuracy": 0.7, "num_pairs": 12},
    }
    from cluster import run
    from trainers.comparison import load

    settings = {**SMALL, **values, "output": str(world.root / "refused")}
    assert run.train(validate(RunConfig, settings)) == 1
    (folder,) = (world.root / "refused").iterdir()
    failure = load(folder / "compare.json").methods["sft"].failure
    assert "judge longest orders" in failure and "judge_check.min_accuracy=0.7" in failure
    assert not list((folder / "rounds").glob("*")) if (folder / "rounds").exists() else True


def pairs_file(folder: Path, number: int) -> Path:
    """MM-RLHF's layout, from the drawn world: every fifth pair a tie, some without reasons."""
    from rewards.drawn_pairs import preference_examples
    from trainers.data.images import ImageStore
    from trainers.data.scenes import scene_samples

    folder.mkdir()
    store = ImageStore(folder / "long")
    samples = list(scene_samples(77, number, store.put_image))
    lines = []
    for index, example in enumerate(preference_examples([(s, ()) for s in samples], 1)):
        row = {
            "id": f"q{index // 2}",
            "image": f"long/{store.path(example.sample.images[0]).name}",
            "prompt": example.sample.prompt[0].text,
            "chosen": example.chosen,
            "rejected": example.rejected,
            "chosen_reason": example.chosen_critique.text,
            "rejected_reason": None if index % 7 == 0 else example.rejected_critique.text,
            "is_tie": index % 5 == 4,
        }
        lines.append(json.dumps(row) + "\n")
    file = folder / "dpo_pairs.jsonl"
    file.write_text("".join(lines))
    return file


def test_a_reward_model_from_a_file(world, tmp_path, monkeypatch, capsys):
    from cluster.cli import main

    monkeypatch.chdir(tmp_path)
    file = pairs_file(tmp_path / "data", 60)
    target = tmp_path / "made"
    words = ["reward", "train", str(file), "--model", str(world.built.honest)]
    words += ["--output", str(target), "--request", "critique the answer .", "--epochs", "2"]
    words += ["--batch_size", "8", "--micro_batch_size", "8", "--learning_rate", "1e-3"]
    words += ["--max_critique_tokens", "60", "--num_threads", "1"]
    assert main(words) == 0
    found = json.loads((target / "reward" / "bench.json").read_text())
    assert {"acc", "acc_plus", "acc_no_critique", "acc_given_reasons", "acc_long"} <= found.keys()
    # ACC+ is of questions, some of which have one pair and others two: it can be above ACC.
    assert 0 <= found["acc_plus"] <= 1 and 0 <= found["acc"] <= 1
    assert main(words) == 2  # the folder exists
    assert "exists already" in capsys.readouterr().err

    assert main(["reward", "bench", str(file), "--judge", str(target), "--json"]) == 0
    text = capsys.readouterr().out
    benched = json.loads(text[text.index("{") :])
    assert benched["pairs"] > 30 and benched["failed_pairs"] == 0

    out = tmp_path / "scores.jsonl"
    assert main(["reward", "score", str(file), "--judge", str(target), "--output", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["column"] for line in lines} == {"chosen", "rejected"}
    assert all(line["score"] is not None and line["critique"]["text"] for line in lines)
    # The bench's ACC is what the scores say.
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    scores = {(line["row"], line["column"]): line["score"] for line in lines}
    right = [
        scores[n, "chosen"] > scores[n, "rejected"]
        for n, row in enumerate(rows, 1)
        if not row["is_tie"]
    ]
    assert sum(right) / len(right) == pytest.approx(benched["acc"])
    assert not list((tmp_path / "runs").iterdir())


def test_critiques_written_in_process_are_those_of_the_engine(world, samples, store):
    from actors.engine import EngineSpec
    from actors.reward import CritiqueJudge
    from rewards.base import known_item

    spec = EngineSpec(model_dir=str(world.built.judge), image_root=str(store.root))
    items = [known_item(sample, "top-left red circle .") for sample in samples]
    judged = []
    for in_process in (False, True):
        ray.get(
            world.session.actor("judge").load.remote(
                lambda in_process=in_process: CritiqueJudge(spec, in_process=in_process)
            )
        )
        judged.append(ray.get(world.session.actor("judge").judge.remote(items)))
        memory = ray.get(world.session.actor("judge").memory.remote())
        assert ("judge_engine" in memory) != in_process
    for engine, own in zip(*judged, strict=True):
        assert engine.critique.text == own.critique.text
        assert engine.score == pytest.approx(own.score, abs=1e-4)


def test_first_token_probabilities_are_the_models_own(world, samples, store, tiny_model):
    import torch

    from actors.engine import EngineSpec
    from actors.modules import load_vlm
    from rewards.asking import Failed, Prompt
    from trainers.data.processing import Processing

    rollout = world.session.actor("rollout")
    spec = EngineSpec(model_dir=tiny_model, image_root=str(store.root), max_model_len=64)
    ray.get(rollout.load.remote(spec))
    prompts = [Prompt.of("is there a red circle ?", sample.images) for sample in samples[:4]]
    prompts.append(Prompt.of("red " * 80, samples[0].images))
    prompts.append(Prompt.of("is there a red circle ?", ("0" * 64,)))
    *answers, long, lost = ray.get(rollout.choose.remote(prompts, ["yes", "Yes", "no"]))
    assert isinstance(long, Failed) and "max_model_len=64" in long.reason
    assert isinstance(lost, Failed) and "keep images beside records" in lost.reason
    processing, vlm = Processing(tiny_model, store), load_vlm(tiny_model)
    for prompt, answer in zip(prompts, answers, strict=False):
        encoded = processing.encode("", prompt.turns, prompt.images, response_ids=())
        with torch.no_grad():
            logits = vlm(
                input_ids=torch.from_numpy(encoded.input_ids)[None], **encoded.model_inputs
            ).logits[0, -1]
        full = logits.softmax(-1)
        for word in ("yes", "no"):
            index = processing.tokenizer.convert_tokens_to_ids(word)
            assert answer[word] == pytest.approx(full[index].item(), rel=1e-4)
        assert answer["Yes"] == 0.0  # no such token
