"""PPO with each role on a GPU of its own, which Ray pretends, is PPO on one device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.comparison import CurvePoint, MethodResult, load

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
if gpus := int(sys.argv[2]):
    from ray.cluster_utils import Cluster
    node = {"num_cpus": 2, "num_gpus": gpus, "include_dashboard": False}
    os.environ["RAY_ADDRESS"] = Cluster(initialize_head=True, head_node_args=node).address
from cluster.cli import main
sys.exit(main(sys.argv[3:]))
"""


def run(model: str, output: Path, gpus: int) -> tuple[MethodResult, str]:
    """The result of two rounds, and the run's log."""
    words = ["train", "ppo", "--model", model, "--judge", "random"]
    settings = {
        "output": str(output),
        "rounds": "2",
        "num_threads": "1",
        "judge_check.min_accuracy": "0.0",
        "rollout.num_prompts": "4",
        "rollout.max_tokens": "12",
        "rollout.kv_cache_mib": "32",
        "train.micro_batch_size": "4",
        "eval.num_scenes": "2",
        "eval.num_curve_scenes": "0",
    }
    for key, value in settings.items():
        words += [f"--{key}", value]
    inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(ROOT), str(gpus), *words],
        capture_output=True,
        text=True,
        timeout=850,
        cwd=output.parent,
        env={**inherited, "RAY_AUTH_MODE": "disabled"},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (folder,) = output.iterdir()
    return load(folder / "compare.json").methods["ppo"], (folder / "run.log").read_text()


def test_ppo_on_five_gpus_is_ppo_on_one_device(tiny_model, tmp_path):
    apart, log = run(tiny_model, tmp_path / "apart", gpus=5)
    together, _ = run(tiny_model, tmp_path / "together", gpus=0)
    assert log.count("placement: ") == 5 and "shares with" not in log
    assert apart.failure is None and together.failure is None
    for one, other in zip(apart.curve, together.curve, strict=True):
        found, expected = (numbers(point) for point in (one, other))
        assert len(expected) > 10 and found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def numbers(point: CurvePoint) -> dict[str, float]:
    """What a round says of learning; None where it says nothing."""
    every = dict(point) | point.extra
    costs = ("seconds", "bytes")
    return {
        name: float(value)
        for name, value in every.items()
        if isinstance(value, int | float) and not any(word in name for word in costs)
    }
