"""A judge's token reaches its server, and nothing that a run writes or prints."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.rating_server import rating_server

VARIABLE = "QUARTET_TEST_JUDGE_TOKEN"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
@pytest.mark.timeout(1800)
def test_a_judges_token_is_in_no_file_of_the_run(tmp_path, tiny_model):
    Image.new("RGB", (64, 64), (60, 80, 90)).save(tmp_path / "a.png")
    truth = {"facts": "an empty picture"}
    row = json.dumps({"images": ["a.png"], "prompt": "describe the image .", "truth": truth})
    (tmp_path / "train.jsonl").write_text(f"{row}\n" * 40)
    token = secrets.token_hex(24)
    asked: set[str | None] = set()
    with rating_server(asked) as url:
        settings = {
            "rounds": 1,
            "num_threads": 1,
            "rollout": {"num_prompts": 8, "max_tokens": 8},
            "judge_check": {"min_accuracy": 0},
            "judge": {
                "name": "rubric",
                "rubric": "faithfulness",
                "endpoint": {"url": url, "model": "m", "token_variable": VARIABLE},
            },
        }
        (tmp_path / "run.yaml").write_text(json.dumps(settings))
        words = ["train", "dpo", "--config", "run.yaml", "--model", tiny_model]
        done = subprocess.run(
            [sys.executable, "-m", "cluster.cli", *words, "--data", "train.jsonl"],
            capture_output=True,
            text=True,
            timeout=880,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), VARIABLE: token},
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert asked == {f"Bearer {token}"}
    assert token not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "env.json", "run.log"} <= {path.name for path in files}
    holding = [path for path in files if token.encode() in path.read_bytes()]
    assert not holding
