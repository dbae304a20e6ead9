"""`quartet eval --benchmark rewardbench`: does a judge order MM-RLHF's pairs as people do?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import judges
from cluster.answering import judge_scores
from cluster.compare import run_folder
from cluster.config import RunConfig
from cluster.console import Console
from cluster.eval_options import Request
from cluster.eval_output import finite, show
from cluster.failures import reported
from cluster.reward import both_sides
from cluster.session import Session
from rewards.base import known_item
from trainers.benchmarks.reward_bench import (
    Pair,
    read_pairs,
    reward_bench_metrics,
    score_file,
)
from trainers.data.images import ImageStore
from trainers.data.records import Sample, Turn

NOTE = "ACC and ACC+ are the judge's; videos are not read, so published overall numbers differ"


def evaluate_judge(request: Request, config: RunConfig) -> int:
    """Score both answers of every pair. Returns the exit code."""
    assert request.data is not None and request.judge is not None
    judges.check_judge(request.judge)
    pairs, videos = read_pairs(request.data, request.limit)
    folder = run_folder(config.output, "eval-rewardbench")
    with (
        Console(folder / "run.log", quiet=request.as_json) as console,
        reported(console, folder),
    ):
        store = ImageStore(folder / "images")
        samples = [_sample(pair, index, store) for index, pair in enumerate(pairs)]
        with Session(num_threads=config.num_threads, console=console) as session:
            with console.stage("start judge"):
                name = judges.load_judge(session, request.judge, store, config)
            rollouts = [
                known_item(sample, text).rollout
                for pair, sample in zip(pairs, samples, strict=True)
                for text in (pair.chosen, pair.rejected)
            ]
            twice = [sample for sample in samples for _ in range(2)]
            values = judge_scores(session, twice, rollouts)
    scores = both_sides(values)
    metrics = reward_bench_metrics(pairs, scores) | {"videos_left_out": float(videos)}
    (folder / "rewardbench_scores.jsonl").write_text(score_file(pairs, scores))
    result = {"benchmark": "rewardbench", "judge": name, "notes": [NOTE], "metrics": metrics}
    _write(folder, result)
    show(request, folder, {name: metrics}, (NOTE,), result)
    return 0


def _write(folder: Path, result: Mapping[str, Any]) -> None:
    (folder / "metrics.json").write_text(json.dumps(finite(result), indent=2) + "\n")


def _sample(pair: Pair, index: int, store: ImageStore) -> Sample:
    images = () if pair.image is None else (store.put_file(pair.image),)
    turn = Turn(role="user", text=pair.prompt, num_images=len(images))
    return Sample(id=f"pair-{index}", prompt=(turn,), images=images, kind=pair.category)
