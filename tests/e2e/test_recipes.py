"""Every recipe of `examples/recipes` really runs: Ray, vLLM, DeepSpeed, two small rounds.

The models have hardly been trained, so nothing is said of quality; what is checked is that a method
selects rows, takes steps, stays in parity with the engine and leaves a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config import METHODS, RunConfig
from cluster.config_text import merge, read_yaml, validate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.deepspeed,
    pytest.mark.timeout(1200),
]

ALL = {path.stem: path for path in (Path(__file__).parents[2] / "examples" / "recipes").iterdir()}
# Those that train on a file's columns are in test_negatives.py, which has one.
RECIPES = {
    name: path
    for name, path in ALL.items()
    if "data" not in read_yaml(path).get("negatives", {}).get("rejected", ())
}
ROUNDS = 2
SMALL: dict[str, Any] = {
    "rounds": ROUNDS,
    "rollout": {"num_prompts": 8, "num_rollouts_per_prompt": 4, "max_tokens": 24},
    "eval": {"num_scenes": 6, "num_curve_scenes": 4},
    "train": {"parity_rollouts": 4, "checksum_every": 1},
    "judge_check": {"min_accuracy": 0.0},  # trained for a few steps, it knows nothing yet
    "num_threads": 1,
}


@pytest.fixture(scope="module")
def models(stack):
    """Base and judge after a few steps."""
    from cluster.base_model import WorldRecipe, ensure

    return ensure(stack.session, WorldRecipe.quick())


def run(stack, models, name: str, values: dict[str, Any]):
    """The run's folder and its only arm, after two rounds."""
    from cluster.run import train
    from trainers.comparison import load

    output = stack.root / "recipes" / name
    values = merge(merge(SMALL, {"output": str(output)}), values) | {"rounds": ROUNDS}
    values |= {"model": str(models.base), "judge": str(models.judge)}
    assert train(validate(RunConfig, values)) == 0
    (folder,) = output.iterdir()
    (arm,) = load(folder / "compare.json").methods.values()
    assert arm.failure is None
    return folder, arm


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipe_runs(stack, models, name):
    values = read_yaml(RECIPES[name])
    if "pairs" in METHODS[values["method"]["name"]].model_fields:
        # The judge knows nothing yet: any difference of scores makes a pair.
        values = merge(values, {"method": {"pairs": {"margin": 0.0}}})
    folder, arm = run(stack, models, name, values)
    from trainers.registry import make_method

    method = make_method(validate(RunConfig, values).method)
    assert arm.copies_train == [copy.role for copy in method.copies]
    assert set(arm.bytes_by_copy) >= set(arm.copies_train)
    assert [point.round for point in arm.curve] == [1, 2]
    for point in arm.curve:
        assert point.extra["steps"] >= 1
        assert point.parity is not None and point.parity < 1e-4
    assert (folder / "final" / "model.safetensors").is_file()
    assert not (folder / "best").exists()


def test_the_best_round_is_what_final_and_engine_hold(stack, models):
    import numpy as np
    import ray
    import torch
    from safetensors.torch import load_file

    from actors.reference import ReferenceActor
    from actors.train_spec import TrainSpec
    from trainers.batch import Row
    from trainers.data.record_file import read_records
    from trainers.data.records import Sample

    values = {"method": {"name": "reward_weighted"}, "eval": {"keep_best": "recall"}}
    folder, arm = run(stack, models, "kept", values)
    recall = [point.recall for point in arm.curve]
    assert arm.best_round == 1 + recall.index(max(recall))  # of equal ones the first

    # The trainer still has the last round's weights.
    last = stack.root / "last"
    ray.get(stack.session.trainer("policy").call("save", str(last)))
    weights = [load_file(each / "model.safetensors") for each in (folder / "final", last)]
    same = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert same == (arm.best_round == ROUNDS)

    # What the engine says is as likely to it as to the model in `final/`.
    records = read_records(folder / "rounds" / "round_000001.msgpack").records
    samples = [record for record in records if isinstance(record, Sample)][:4]
    rollouts, _ = ray.get(
        stack.session.actor("rollout").generate.remote(
            samples, num_rollouts_per_prompt=1, temperature=1.0, max_tokens=24, seed=0
        )
    )
    by_id = {sample.id: sample for sample in samples}
    rows = [Row.of_response(by_id[r.sample_id], r.token_ids, r.id) for r in rollouts]
    model = ReferenceActor()
    spec = TrainSpec(
        role="reference", model_dir=str(folder / "final"), image_root=str(folder / "images")
    )
    model.load(spec)
    for rollout, values_R in zip(rollouts, model.score_rows(rows), strict=True):
        np.testing.assert_allclose(rollout.logprobs, values_R, atol=1e-3)


def test_sft_on_the_answers_of_a_data_file(stack, models):
    import json
    import random

    from trainers.data.scenes import caption, draw_scene, render

    rng, folder = random.Random(0), stack.root / "captions"
    folder.mkdir()
    rows = []
    for number in range(10):
        scene = draw_scene(rng)
        render(scene, rng).save(folder / f"{number}.png")
        row = {"images": [f"{number}.png"], "prompt": "describe the image ."}
        rows.append(row | ({"chosen": caption(scene)} if number else {}))
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "method": {"name": "sft", "target": "data"},
        "data": {"path": str(file)},
        "rollout": {"num_prompts": 10},
    }
    _, arm = run(stack, models, "data", values)
    assert [point.extra["data/answers"] for point in arm.curve] == [9.0, 9.0]
    assert [point.extra["data/no_answer"] for point in arm.curve] == [1.0, 1.0]
    assert all(point.extra["steps"] >= 1 for point in arm.curve)
