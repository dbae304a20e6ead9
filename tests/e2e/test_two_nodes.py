"""A real run on a cluster of two nodes with GPUs that Ray pretends: ZeRO over both, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.comparison import load

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.deepspeed,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]
ROOT = Path(__file__).parents[2]
DRIVER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from cluster.offline import go_offline
go_offline()
from ray.cluster_utils import Cluster
node = {"num_cpus": 2, "num_gpus": 2, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
cluster.add_node(**node)
os.environ["RAY_ADDRESS"] = cluster.address
from cluster.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_a_run_on_two_nodes(tiny_model, tmp_path):
    words = ["train", "dpo", "--model", tiny_model, "--judge", "random"]
    settings = {
        "output": str(tmp_path / "runs"),
        "rounds": "1",
        "num_threads": "1",
        "judge_check.min_accuracy": "0.0",
        "rollout.num_prompts": "6",
        "rollout.max_tokens": "12",
        "rollout.kv_cache_mib": "32",
        "train.zero_stage": "2",
        "train.micro_batch_size": "4",
        "placement.gpus": "{policy: 3}",
        "placement.colocate": "[[policy, reference], [rollout, judge]]",
        "eval.num_scenes": "2",
        "eval.num_curve_scenes": "0",
    }
    for key, value in settings.items():
        words += [f"--{key}", value]
    ours = ("RAY_ADDRESS", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(ROOT), *words],
        capture_output=True,
        text=True,
        timeout=1500,
        cwd=tmp_path,
        env={**environment, "RAY_AUTH_MODE": "disabled"},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (folder,) = (tmp_path / "runs").iterdir()
    result = load(folder / "compare.json").methods["dpo"]
    assert result.failure is None and result.curve[-1].round == 1
    assert result.conditions.shards.ranks == 3
    log = (folder / "run.log").read_text()
    # The widest group fills one node and goes on to the other; the last GPU is left for engines.
    assert "placement: policy     rank 0-1 -> " in log and "; rank 2 -> " in log
    assert "(shares with judge)" in log and "3 rank(s)" in log
    assert len(json.loads((folder / "env.json").read_text())["placement"]) == 4
    assert (folder / "final" / "model.safetensors").is_file()
