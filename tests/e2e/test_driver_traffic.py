"""What passes through the driver in a round: bounded by the answers, whatever the images' size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.config import RunConfig
from cluster.config_text import validate

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.deepspeed,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]
PROMPTS, ANSWERS, TOKENS = 6, 4, 16
COLORS = ("red", "green", "blue", "yellow", "purple", "white")


def run(root: Path, model: str, side: int) -> list[dict[str, Any]]:
    """Two rounds of DPO on images of one colour, which no resizing changes; the rounds' metrics."""
    from cluster.run import train

    folder = root / str(side)
    folder.mkdir()
    with (folder / "data.jsonl").open("w") as file:
        for index, color in enumerate(COLORS):
            Image.new("RGB", (side, side), color).save(folder / f"{color}.png")
            row = {"id": str(index), "prompt": "what do you see ?", "image": f"{color}.png"}
            file.write(json.dumps(row) + "\n")
    values = {
        "output": str(folder / "runs"),
        "rounds": 2,
        "model": model,
        "judge": "tests.e2e.judge_functions:length",
        "judge_check": {"min_accuracy": 0.0},
        "method": {"name": "dpo", "pairs": {"margin": 0.0}},
        "rollout": {
            "num_prompts": PROMPTS,
            "num_rollouts_per_prompt": ANSWERS,
            "max_tokens": TOKENS,
            "kv_cache_mib": 32,
        },
        "train": {"parity_rollouts": 4},
        "data": {"path": str(folder / "data.jsonl")},
        "num_threads": 1,
    }
    assert train(validate(RunConfig, values)) == 0
    (made,) = (folder / "runs").iterdir()
    return [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]


def test_images_of_twice_the_side_send_the_same_bytes(stack, tiny_model, tmp_path):
    small, large = (run(tmp_path, tiny_model, side) for side in (64, 128))
    for one, other in zip(small, large, strict=True):
        for name in ("driver/bytes_sent", "driver/bytes_received"):
            assert one[name] > 1000  # something is counted
            assert abs(one[name] - other[name]) <= 0.01 * one[name], name
        # Each answer passes a few times: to the driver, to the judge and back, to the trainers.
        assert one["driver/bytes_sent"] < PROMPTS * ANSWERS * (100 * TOKENS + 20_000)
        assert one["driver/bytes_received"] < PROMPTS * ANSWERS * (100 * TOKENS + 20_000)
