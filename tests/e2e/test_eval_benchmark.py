"""`quartet eval` on benchmark files: the drawn world written in the originals' formats."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, get_args

import pytest

import cluster.run
from cluster.answering import ask, read_samples, score_rows, scoring_spec
from cluster.cli import main
from cluster.compare import engine_spec
from cluster.config import RunConfig
from cluster.drawn_benchmark import DrawnWorld
from trainers.batch import Row
from trainers.benchmarks.pope import original_answer
from trainers.data.images import ImageStore
from trainers.data.scenes import (
    COLORS,
    DESCRIBE_PROMPTS,
    SHAPES,
    Scene,
    Split,
    held_out_scenes,
    parse_mentions,
    plural,
    pope_questions,
)
from trainers.evaluation import POPE_SPLITS, caption_metrics, pope_metrics

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm]
NUM_SCENES = 6


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene for scene, _ in held_out_scenes(NUM_SCENES, 7)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn world as POPE, COCO with Object HalBench, AMBER, MMHal and RewardBench."""
    folder = tmp_path_factory.mktemp("benchmarks")
    drawn = held_out_scenes(NUM_SCENES, 7)
    for index, (_, image) in enumerate(drawn):
        image.save(folder / f"mcq_{index}.png")
    names = [f"mcq_{index}.png" for index in range(NUM_SCENES)]
    rng = random.Random(0)
    for split in get_args(Split):
        rows = [
            {"question_id": 0, "image": name, "text": text, "label": label}
            for name, (scene, _) in zip(names, drawn, strict=True)
            for text, label in pope_questions(scene, split, rng, per_label=1)
        ]
        lines(folder / f"coco_pope_{split}.json", rows)
    coco(folder, names, [scene for scene, _ in drawn])
    amber(folder, names, [scene for scene, _ in drawn])
    judged(folder, names)
    return folder


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def coco(folder: Path, names: list[str], scenes: list[Scene]) -> None:
    """CHAIR counts shapes, since it merges only its own two-word names; Object HalBench, which
    merges all, counts coloured shapes."""
    (folder / "synonyms.txt").write_text("".join(f"{shape}\n" for shape in SHAPES))
    types = "".join(f"{color} {shape}\n" for color in COLORS for shape in SHAPES)
    (folder / "synonyms_refine.txt").write_text(types)
    instances = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "categories": [{"id": i, "name": shape} for i, shape in enumerate(SHAPES)],
        "annotations": [
            {"image_id": index, "category_id": SHAPES.index(item.shape)}
            for index, scene in enumerate(scenes)
            for item in scene.objects
        ],
    }
    (folder / "instances_all2014.json").write_text(json.dumps(instances))
    (folder / "captions_all2014.json").write_text(json.dumps({"annotations": []}))
    (folder / "image_ids.txt").write_text("".join(f"{i}\n" for i in range(len(names))))
    rows = [
        {
            "image": name,
            "question": DESCRIBE_PROMPTS[0],
            "objects": [" ".join(kind) for kind in scene.types],
        }
        for name, scene in zip(names, scenes, strict=True)
    ]
    lines(folder / "hallucination_coco.jsonl", rows)


def amber(folder: Path, names: list[str], scenes: list[Scene]) -> None:
    queries, annotations = [], []
    for name, scene in zip(names, scenes, strict=True):
        shapes = sorted({item.shape for item in scene.objects})
        absent = [shape for shape in SHAPES if shape not in shapes]
        described = {"type": "generative", "truth": shapes, "hallu": absent[:1]}
        asked = {"type": "discriminative-hallucination", "truth": "yes"}
        kind = " ".join(scene.types[0])
        for text, row in ((DESCRIBE_PROMPTS[0], described), (f"is there a {kind} ?", asked)):
            number = len(queries) + 1
            queries.append({"id": number, "image": name, "query": text})
            annotations.append({"id": number, **row})
    (folder / "query_all.json").write_text(json.dumps(queries))
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "relation.json").write_text(json.dumps({shape: [] for shape in SHAPES}))
    (folder / "safe_words.txt").write_text("line")


def judged(folder: Path, names: list[str]) -> None:
    rows = [
        {
            "question_type": "attribute",
            "image_content": ["shapes"],
            "image_src": f"https://nowhere/{name}",
            "question": DESCRIBE_PROMPTS[0],
            "gt_answer": "shapes",
            "model_answer": "",
        }
        for name in names
    ]
    (folder / "response_template.json").write_text(json.dumps(rows))
    answers = {"chosen": "yes it is", "rejected": "no"}
    pairs = [
        {"id": i // 2, "image": name, "prompt": "?", **answers} for i, name in enumerate(names)
    ]
    pairs[0] |= {"chosen": "no", "rejected": "yes it is"}
    lines(folder / "mm_reward_bench.jsonl", pairs)


@pytest.fixture
def evaluate(stack, data, tiny_model, tmp_path, capsys, monkeypatch):
    """`quartet eval TINY --benchmark ...` in the shared session; its JSON and its folder."""
    monkeypatch.setattr("cluster.benchmark.Session", cluster.run.Session)
    monkeypatch.setattr("cluster.reward_benchmark.Session", cluster.run.Session)

    def call(benchmark: str | None, *words: str, model: str | None = tiny_model):
        source = () if benchmark is None else ("--benchmark", benchmark, "--data", str(data))
        start = () if model is None else (model,)
        output = ("--output", str(tmp_path / "runs"), "--num_threads", "1")
        assert main(["eval", *start, *source, *words, *output, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        (folder,) = (tmp_path / "runs").iterdir()
        return result, folder

    return call


def singular(text: str) -> str:
    """The random model says `circles` too."""
    names = {plural(shape): shape for shape in SHAPES}
    return " ".join(names.get(word, word) for word in text.split())


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pope_is_what_the_drawn_world_measures(evaluate, data):
    result, folder = evaluate("pope", "--max-tokens", "4")
    metrics = result["metrics"]["greedy"]
    items = []
    for split in POPE_SPLITS:
        answers = read_lines(folder / f"pope_{split}_answers.json")
        labels = read_lines(data / f"coco_pope_{split}.json")
        assert [row["question"] for row in answers] == [row["text"] for row in labels]
        items += [
            (split, label["label"], answer["answer"])
            for label, answer in zip(labels, answers, strict=True)
        ]
    words = [(split, label, original_answer(text)) for split, label, text in items]
    for name, value in pope_metrics(words).items():
        if name != "pope_unclear":
            assert metrics[name] == pytest.approx(value, nan_ok=True) or value != value, name
    assert json.loads((folder / "metrics.json").read_text())["metrics"]["greedy"] == metrics


def test_object_halbench_is_chair_of_the_drawn_world(evaluate, scenes):
    result, folder = evaluate("object-halbench", "--words", "own", "--max-tokens", "24")
    metrics = result["metrics"]["greedy"]
    rows = read_lines(folder / "obj_halbench_answer.jsonl")
    mentions = [[m.type for m in parse_mentions(singular(row["answer"]))] for row in rows]
    wrong = [
        sum(kind not in scene.types for kind in named)
        for named, scene in zip(mentions, scenes, strict=True)
    ]
    total = sum(map(len, mentions))
    assert metrics["chair_i"] == (pytest.approx(sum(wrong) / total) if total else None)
    assert metrics["chair_s"] == pytest.approx(sum(map(bool, wrong)) / NUM_SCENES)
    # The drawn world also counts one repeat too many as hallucinated: no fewer than here.
    items = [(s.truth(), singular(r["answer"]), 1) for s, r in zip(scenes, rows, strict=True)]
    ours = caption_metrics(items)
    assert not total or ours["chair_i"] >= metrics["chair_i"] - 1e-9
    assert any("NOT comparable" in note for note in result["notes"])


def test_chair_and_amber(evaluate, data, scenes, tmp_path):
    words = ("--words", "own", "--max-tokens", "24")
    result, folder = evaluate("chair", *words, "--prompt", DESCRIBE_PROMPTS[0])
    captions = json.loads((folder / "chair_captions.json").read_text())["imgToEval"]
    named = [
        [word for word in singular(captions[str(i)]["caption"]).split() if word in SHAPES]
        for i in range(NUM_SCENES)
    ]
    wrong = sum(
        word not in {item.shape for item in scene.objects}
        for words_, scene in zip(named, scenes, strict=True)
        for word in words_
    )
    total = sum(map(len, named))
    metrics = result["metrics"]["greedy"]
    assert metrics["chair_i"] == (pytest.approx(wrong / total) if total else None)
    folder.rename(tmp_path / "chair")
    result, folder = evaluate("amber", *words)
    metrics = result["metrics"]["greedy"]
    # Greedy descriptions of the same scenes by the same prompt: the same shapes are named.
    assert metrics["chair"] == round(100 * wrong / (total + 0.001), 1)
    answers = json.loads((folder / "amber_answers.json").read_text())
    assert [row["id"] for row in answers] == list(range(1, 2 * NUM_SCENES + 1))
    said = [row["response"] for row in answers[1::2]]
    assert set(said) <= {"Yes", "No"}
    assert metrics["accuracy"] == round(100 * said.count("Yes") / (NUM_SCENES + 0.001), 1)
    assert metrics["amber_score"] == pytest.approx((100 - metrics["chair"] + metrics["f1"]) / 2)


def test_judged_benchmarks(evaluate, tmp_path):
    judge = "tests.e2e.judge_functions:few_letters"
    result, folder = evaluate("mmhal", "--judge", judge, "--max-tokens", "16")
    rows = json.loads((folder / "mmhal_response.json").read_text())
    ratings = [float(min(6, len(row["model_answer"]) % 7)) for row in rows]
    metrics = result["metrics"]["greedy"]
    assert metrics["mmhal_score"] == pytest.approx(sum(ratings) / len(ratings))
    assert metrics["mmhal_unrated"] == 0.0
    assert f"judge: {judge}" in result["notes"]
    folder.rename(tmp_path / "mmhal")
    judge = "tests.e2e.judge_functions:length"
    result, folder = evaluate("rewardbench", "--judge", judge, model=None)
    assert result["metrics"]["acc"] == pytest.approx(1 - 1 / NUM_SCENES)
    assert result["metrics"]["acc_plus"] == pytest.approx(1 - 2 / NUM_SCENES)
    scores = read_lines(folder / "rewardbench_scores.jsonl")
    assert scores[0]["rewards"] == [2.0, 9.0]


def test_best_of_and_calibration_on_the_drawn_world(evaluate, tmp_path):
    from trainers.data.drawn_model import build_model, build_processor, save_pretrained_folder

    other = tmp_path / "reference"
    save_pretrained_folder(build_model(1), build_processor(), other)
    words = ("--scenes", "4", "--best-of", "3", "--reference", str(other), "--calibrate")
    result, folder = evaluate(None, *words)
    summary = result["best_of"]
    assert summary["temperature"] == 0.7
    # Two random models differ: choosing must gain, or the rewards are not those of the samples.
    assert summary["mean_reward_best"] > summary["mean_reward_first"]
    assert 0.0 < summary["first_is_best"] < 1.0
    assert set(result["metrics"]) == {"first sample", "best of 3"}
    assert (folder / "first_answers.jsonl").is_file() and (folder / "answers.jsonl").is_file()
    found = result["calibration"]["all"]
    rows = read_lines(folder / "calibration.jsonl")
    assert found["questions"] == len(rows) > 8
    assert found["bias"] + found["perception"] == pytest.approx(
        (1 - found["before_accuracy"]) * len(rows)
    )
    for row in rows:
        for yes, no in (row["p"], row["p_cf"]):
            assert 0.0 < yes < 1.0 and 0.0 < no < 1.0 and yes + no < 1.0
    assert any(row["p"] != row["p_cf"] for row in rows)


def test_scores_are_those_of_the_engine(stack, tiny_model, tmp_path):
    """At temperature 1 the sampler's log-probabilities are what self-feedback compares."""
    store = ImageStore(tmp_path / "images")
    config = RunConfig.model_validate({"method": {"name": "sft"}})
    questions = DrawnWorld(store, 3).questions
    samples = read_samples(stack.session, questions, store)
    stack.session.load_rollout(engine_spec(tiny_model, store, config))
    groups = ask(stack.session, questions, samples, number=2, temperature=1.0)
    assert [group[0].sample_id for group in groups] == [question.id for question in questions]
    pairs = [(s, r) for s, group in zip(samples, groups, strict=True) for r in group]
    rows = [Row.of_response(sample, r.token_ids, r.id) for sample, r in pairs]
    scores = score_rows(stack.session, scoring_spec(tiny_model, store, config), rows, "score")
    for values, (_, rollout) in zip(scores, pairs, strict=True):
        assert values == pytest.approx(rollout.logprobs, abs=1e-4)


def test_a_model_is_no_reference_of_itself(stack, tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cluster.benchmark.Session", cluster.run.Session)
    output = ("--output", str(tmp_path / "runs"))
    words = ("--scenes", "2", "--best-of", "2", "--reference", tiny_model)
    assert main(["eval", tiny_model, *words, *output]) == 2
    assert "is the evaluated model itself" in capsys.readouterr().err
