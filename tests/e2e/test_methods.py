"""All methods on the real stack: Ray, vLLM and DeepSpeed, from a base model trained here.

The models are far too small-trained to say anything; what is checked is that every part does its
work and that the numbers of the comparison are complete.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.config import CompareConfig, RunConfig
from cluster.config_text import validate
from trainers.data.record_file import read_records
from trainers.data.records import Sample, ScoredRollout

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.timeout(1200)]

ARMS = ("ppo", "dpo", "nsft", "sft", "random")
ROUNDS, PROMPTS, PER_PROMPT = 2, 8, 4
SMALL: dict[str, Any] = {
    "rollout": {"num_prompts": PROMPTS, "num_rollouts_per_prompt": PER_PROMPT, "max_tokens": 24},
    "eval": {"num_scenes": 12, "num_curve_scenes": 6},
    "train": {"parity_rollouts": 8, "checksum_every": 1},
    "judge_check": {"min_accuracy": 0.0},  # trained for a few steps, it knows nothing yet
    "num_threads": 1,
}
METRICS = {
    "chair_i",
    "chair_s",
    "recall",
    "pope_accuracy",
    "pope_f1",
    "pope_yes_ratio",
    "response_length",
}


@pytest.fixture(scope="module")
def folder(stack) -> Path:
    """The folder of one comparison of all arms."""
    from cluster.compare import compare

    values = {
        **SMALL,
        "output": str(stack.root / "runs"),
        "quick": True,
        "rounds": ROUNDS,
        "arms": {
            "ppo": {"method": {"minibatch_size": 16}},
            # The judge knows nothing yet: any difference of scores makes a pair.
            **{name: {"method": {"pairs": {"margin": 0.0}}} for name in ARMS[1:]},
        },
    }
    assert compare(validate(CompareConfig, values)) == 0
    (folder,) = (stack.root / "runs").iterdir()
    return folder


@pytest.fixture(scope="module")
def comparison(folder):
    from trainers.comparison import load

    return load(folder / "compare.json")


def test_compare_json_has_every_promised_key(folder):
    written = json.loads((folder / "compare.json").read_text())
    assert written["base"]["metrics"].keys() >= METRICS
    assert written["honest"]["metrics"].keys() >= METRICS
    assert set(written["methods"]) == set(ARMS)
    for arm in written["methods"].values():
        assert arm["metrics"].keys() >= METRICS
        for key in ("copies_train", "copies_loop", "bytes_by_copy", "seconds_by_phase"):
            assert arm[key]
        assert [point["round"] for point in arm["curve"]] == [0, 1, 2]  # 0 is the base
        assert all({"score", "kl", "chair_i"} <= point.keys() for point in arm["curve"])
        assert all(point["score"] is not None for point in arm["curve"][1:])
    for name in ("generated", "no_critique", "ground_truth_critique"):
        assert f"pair_accuracy_{name}" in written["judge"]


def test_default_arms_run_under_conditions_that_are_all_measured(comparison):
    for name, arm in comparison.arms():
        conditions = arm.conditions
        assert conditions is not None and None not in conditions.model_dump().values(), name
        assert conditions.rollout_copy.kv_cache_tokens > 1000
    # A step of PPO is 16 rows here, one of SFT as many as there are pairs: that is a difference.
    assert {difference.what for difference in comparison.unfair} <= {"micro_batch"}


def test_budgets_are_equal(comparison):
    for name, arm in comparison.arms():
        assert arm.failure is None, name
        assert arm.rollouts == arm.judge_calls == ROUNDS * PROMPTS * PER_PROMPT
        assert arm.dropped == {}
    assert not [text for text in comparison.warnings if "budget" in text]


def test_all_arms_see_the_same_prompts(folder):
    seen = []
    for name in ARMS:
        ids = []
        for file in sorted((folder / name / "rounds").iterdir()):
            records = read_records(file).records
            ids.append([(r.id, r.images) for r in records if isinstance(r, Sample)])
        seen.append(ids)
    assert all(ids == seen[0] for ids in seen)
    assert [len(ids) for ids in seen[0]] == [PROMPTS] * ROUNDS


def test_copies_are_4_2_1_1(comparison):
    numbers = {name: len(arm.copies_train) for name, arm in comparison.arms()}
    assert numbers == {"ppo": 4, "dpo": 2, "nsft": 1, "sft": 1, "random": 2}


def test_bytes_are_those_of_the_declared_copies(comparison):
    trained = {"weights", "gradients", "optimizer"}
    for name, arm in comparison.arms():
        sizes = arm.bytes_by_copy
        assert set(arm.copies_train) <= set(sizes), name
        assert set(sizes) & {"critic", "reference", "reward"} == set(arm.copies_train) - {"policy"}
        assert set(sizes["policy"]) == trained, name
        assert all(size > 100_000 for kinds in sizes.values() for size in kinds.values())
        assert "rollout_engine" in sizes
        # Adam in float32 holds two numbers a weight, and its few step counters.
        ratio = sizes["policy"]["optimizer"] / sizes["policy"]["gradients"]
        assert ratio == pytest.approx(2.0, abs=0.01)
    ppo = comparison.methods["ppo"].bytes_by_copy
    assert set(ppo["critic"]) == trained
    assert set(ppo["reference"]) == set(ppo["reward"]) == {"weights"}
    assert "judge" not in ppo
    assert "judge" in comparison.methods["nsft"].bytes_by_copy


def test_engine_and_trainer_agree_after_every_sync(comparison):
    for name, arm in comparison.arms():
        for point in arm.curve[1:]:
            assert point.parity is not None and point.parity < 1e-4, name


def test_every_arm_took_steps_and_moved(comparison):
    for name, arm in comparison.arms():
        for point in arm.curve[1:]:
            assert point.extra["steps"] >= 2, name
            assert point.loss is not None
    first = comparison.methods["ppo"].curve[1]
    assert first.extra["first/policy/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert abs(first.kl) < 1e-3  # the policy is still the reference
    assert first.explained_variance is not None
    # At the first step the policy is the reference: ln 2.
    assert comparison.methods["dpo"].curve[1].extra["first/loss"] == pytest.approx(0.6931, abs=1e-3)


def test_phases_are_timed(comparison):
    for name, arm in comparison.arms():
        phases = {"load", "generate", "judge", "build", "train", "sync", "parity", "evaluate"}
        assert phases <= arm.seconds_by_phase.keys(), name
        assert ("logprobs" in arm.seconds_by_phase) and all(
            span.end >= span.start >= 0 for span in arm.timeline
        )
    assert "refresh" in comparison.methods["dpo"].seconds_by_phase


def test_rollouts_are_recorded_as_they_were_sampled(folder):
    for name in ARMS:
        for file in sorted((folder / name / "rounds").iterdir()):
            result = read_records(file)
            assert result.warning is None
            judged = [r for r in result.records if isinstance(r, ScoredRollout)]
            assert len(judged) == PROMPTS * PER_PROMPT
            assert all(len(r.rollout.token_ids) == len(r.rollout.logprobs) for r in judged)
            assert {r.judge for r in judged} == {"random" if name == "random" else "critique"}


def test_metrics_file_has_a_line_a_round(folder):
    for name in ARMS:
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in lines] == [1, 2]


def test_the_report_names_every_arm(folder):
    page = (folder / "report.html").read_text()
    for word in ("PPO", "DPO", "nSFT", "SFT", "data:image/png"):
        assert word in page
    assert "http" not in page.replace("http://www.w3.org", "")  # opens without a network
    assert json.loads((folder / "gallery.json").read_text())["items"]


def test_final_models_load_and_differ_from_the_base(folder, comparison):
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    weights = {}
    for name in ARMS:
        model = AutoModelForImageTextToText.from_pretrained(folder / name / "final")
        AutoProcessor.from_pretrained(folder / name / "final")
        weights[name] = torch.cat([p.flatten() for p in model.parameters()])
    for name in ARMS[1:]:
        assert not torch.equal(weights["ppo"], weights[name])


@pytest.fixture(scope="module")
def unequal(stack) -> Path:
    """Two arms of one method, the second with smaller micro-batches and another engine."""
    from cluster.compare import compare

    sft = {"method": {"name": "sft", "pairs": {"margin": 0.0}}}
    small = {"train": {"micro_batch_size": 2}, "rollout": {"max_model_len": 320}}
    output = stack.root / "unequal"
    values = {
        **SMALL,
        "output": str(output),
        "quick": True,
        "rounds": 1,
        "arms": {"sft": sft, "small": {**sft, **small, "judge": "random"}},
    }
    assert compare(validate(CompareConfig, values)) == 0
    (run,) = output.iterdir()
    return run


@pytest.mark.slow
def test_arms_under_other_conditions_are_marked_everywhere(unequal):
    written = json.loads((unequal / "compare.json").read_text())
    (batch, engine) = written["unfair"]
    assert batch["arms"] == engine["arms"] == ["sft", "small"]
    assert (batch["what"], engine["what"]) == ("micro_batch", "rollout_copy")
    one, other = (written["methods"][name]["conditions"] for name in ("sft", "small"))
    assert one["micro_batch"]["rows"] > other["micro_batch"]["rows"] == 2
    for part in (one["micro_batch"], other["micro_batch"]):
        assert part["tokens"] == part["rows"] * part["length"]
    assert batch["values"] == {
        name: {"tokens": part["micro_batch"]["tokens"]}
        for name, part in (("sft", one), ("small", other))
    }
    assert engine["values"] == {"sft": {"max_model_len": 384}, "small": {"max_model_len": 320}}
    for same in ("precision", "shards", "logprob_path"):
        assert one[same] == other[same]
    assert one["precision"] == dict.fromkeys(("weights", "masters", "optimizer"), "float32")
    page = (unequal / "report.html").read_text()
    assert page.count('class="alert">unfair: ') == 2
    assert page.count('<td class="differs">') == 4
    log = (unequal / "run.log").read_text()
    assert "unfair: not the same micro-batch tokens: tokens " in log and "|small !|" in log


@pytest.mark.slow
def test_arms_of_one_method_do_not_meet(unequal):
    written = json.loads((unequal / "compare.json").read_text())
    assert [arm["method"] for arm in written["methods"].values()] == ["sft", "sft"]
    assert [arm["judge"] for arm in written["methods"].values()] == ["critique", "random"]
    for name in ("sft", "small"):
        assert (unequal / name / "final" / "model.safetensors").is_file()
        assert len((unequal / name / "metrics.jsonl").read_text().splitlines()) == 1
    answers = json.loads((unequal / "gallery.json").read_text())["items"][0]["answers"]
    assert set(answers) == {"base", "honest", "sft", "small"}
    page = (unequal / "report.html").read_text()
    assert "--arm-sft: var(--arm0); --arm-small: var(--arm1);" in page
    assert not (unequal / "honest").exists()


def test_a_recorded_arm_trains_another_method_without_generating(stack, folder):
    from cluster.replay import replay
    from trainers.comparison import load

    overrides = {"output": str(stack.root / "replays")}
    assert replay(folder / "dpo", "sft", None, overrides) == 0
    (run,) = (stack.root / "replays").iterdir()
    arm = load(run / "compare.json").methods["sft"]
    assert arm.failure is None
    assert [point.round for point in arm.curve if point.round] == [1, 2]
    assert "generate" not in arm.seconds_by_phase and arm.judge_calls == 0


def user_run(
    stack, folder, judge: str, output: str, *, parity_tolerance: float = 1e-4, **data: Any
) -> tuple[int, Any]:
    from cluster.base_model import cache_root
    from cluster.run import train
    from trainers.comparison import load

    (cached,) = cache_root().iterdir()
    values = {
        **SMALL,
        "output": str(stack.root / output),
        "rounds": 1,
        "model": str(cached / "base"),
        "judge": judge,
        "method": {"name": "sft", "pairs": {"margin": 0.0}},
        "eval": {"num_scenes": 2, "num_curve_scenes": 0},
        "data": data,
        "train": {**SMALL.get("train", {}), "parity_tolerance": parity_tolerance},
    }
    from cluster.failures import RunStoppedError

    try:
        code = train(validate(RunConfig, values))
    except RunStoppedError:
        code = 1
    (run,) = (stack.root / output).iterdir()
    return code, load(run / "compare.json").methods["sft"]


def test_a_stopped_run_says_why_and_keeps_its_memory(stack, folder):
    judge = "tests.e2e.judge_functions:length"
    code, arm = user_run(stack, folder, judge, "stopped", parity_tolerance=1e-30)
    assert code == 1 and "train.parity_tolerance=1e-30" in arm.failure
    assert {"train", "sync"} <= arm.memory.device_bytes_by_phase.keys()


def test_a_users_file_gives_the_prompts_and_a_users_function_judges(stack, folder):
    """RLAIF-V's parquet with the images inside; one of them is damaged, one prompt too long."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from trainers.data.images import ImageStore
    from trainers.data.scenes import scene_samples

    store = ImageStore(stack.root / "scenes")
    rows = [
        {
            "question": sample.prompt[0].text,
            "image": {"bytes": store.read_bytes(sample.images[0]), "path": None},
            "chosen": "a red circle .",
            "rejected": "a blue square .",
            "idx": 100 + i,
        }
        for i, sample in enumerate(scene_samples(5, PROMPTS + 2, store.put_image))
    ]
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:200]
    rows[4]["question"] = "what do you see ? " * 100
    path = stack.root / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    judge = "tests.e2e.judge_functions:length"
    code, arm = user_run(stack, folder, judge, "data", path=str(path), max_dropped_share=0.2)
    assert code == 0 and arm.failure is None
    assert arm.curve[-1].extra["steps"] >= 1
    assert "judge" not in arm.bytes_by_copy  # the function holds no model
    assert arm.rollouts == PROMPTS * PER_PROMPT
    assert arm.dropped["data: prompt exceeds rollout.max_model_len"] == 1
    assert [number for reason, number in arm.dropped.items() if "damaged or cut" in reason] == [1]
    (file,) = (stack.root / "data").glob("*/rounds/*.msgpack")
    found = [item for item in read_records(file).records if isinstance(item, Sample)]
    names = {f"{100 + i}#{i + 1}" for i in range(PROMPTS + 2)} - {"101#2", "104#5"}
    assert {sample.id for sample in found} == names
    assert {sample.chosen for sample in found} == {"a red circle ."}


def test_a_judge_that_often_fails_stops_the_run(stack, folder):
    code, arm = user_run(stack, folder, "tests.e2e.judge_functions:often_raises", "broken")
    assert code == 1
    assert "round 1:" in arm.failure and "data.max_dropped_share=0.05" in arm.failure
    assert "raised LookupError: no such color" in arm.failure
    (reason,) = arm.dropped
    assert 3 < arm.dropped[reason] < PROMPTS * PER_PROMPT
    assert not [point for point in arm.curve if point.round]  # nothing was trained on
