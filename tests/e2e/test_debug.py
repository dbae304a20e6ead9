"""`--debug`: the same run in one process, with a debugger at work in a method's loss.

The untrained model ends no answer, so the methods are such as train on answers that were cut off.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.cli import main

SMALL = {
    "--rounds": "1",
    "--num_threads": "1",
    "--rollout.num_prompts": "8",
    "--rollout.max_tokens": "8",
    "--judge_check.min_accuracy": "0",
}
STOPS_ONCE = """
import sys
from cluster.cli import main
from trainers.grpo import GRPO

loss = GRPO.loss

def stopping(self, role, outputs, batch, totals):
    GRPO.loss = loss
    breakpoint()
    return loss(self, role, outputs, batch, totals)

GRPO.loss = stopping
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def run(folder: Path, started_with: dict[str, str]) -> Callable[..., str]:
    """`run(["stops.py"], words)`: what that command prints, which has to succeed."""

    def finish(script: list[str], words: list[str], stdin: str = "") -> str:
        done = subprocess.run(
            [sys.executable, *script, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=880,
            cwd=folder,
            env={**started_with, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return finish


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (72, 72), (60, 80, 90)).save(tmp_path / "a.png")
    row = json.dumps({"images": ["a.png"], "prompt": "describe the image ."}) + "\n"
    (tmp_path / "train.jsonl").write_text(row * 40)
    (tmp_path / "my_judge.py").write_text("def score(response, **rest): return len(response)\n")
    (tmp_path / "stops.py").write_text(STOPS_ONCE)
    return tmp_path


def train(method: str, model: str, *words: str) -> list[str]:
    base = ["train", method, "--model", model, "--data", "train.jsonl"]
    small = [word for setting in SMALL.items() for word in setting]
    return [*base, "--judge", "my_judge:score", *small, *words]


def curve(folder: Path, method: str) -> list[dict[str, object]]:
    (run_folder,) = folder.glob(f"runs/{method}-*")
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return [
        {
            k: v
            for k, v in json.loads(line).items()
            if not ("seconds" in k or k.startswith("driver/"))
        }
        for line in lines
    ]


def test_several_ranks_are_refused(folder, tiny_model, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(train("dpo", tiny_model, "--debug", "--train.num_ranks", "2")) == 2
    assert (
        "--debug runs in one process; policy has more (train.num_ranks" in capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_breakpoint_in_a_loss_sees_the_whole_run(run, tiny_model):
    """One stack from the command line down to the loss, and its tensors at hand."""
    commands = "p 'role', role\np tuple(batch.input_ids_BT.shape)[0] > 0\nwhere\ncontinue\n"
    out = run(["stops.py"], train("grpo", tiny_model, "--debug"), commands)
    assert "(Pdb) ('role', 'policy')" in out and "(Pdb) True" in out
    stack = re.findall(r"cluster/\w+\.py\(\d+\)(\w+)\(\)|actors/\w+\.py\(\d+\)(\w+)\(\)", out)
    names = [a or b for a, b in stack]
    for name in ("main", "run_arm", "train_round", "train_copies", "remote", "train"):
        assert name in names, names
    assert "grpo   round 1/1" in out and "1/1 done" in out


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_equal_to_a_run_in_processes(method, run, folder, tiny_model):
    """The same metrics: what is debugged is what runs. PPO has two trained copies, and a judge."""
    entry = ["-m", "cluster.cli"]
    run(entry, train(method, tiny_model, "--debug", "--output", "debugged"))
    run(entry, train(method, tiny_model))
    processes = curve(folder, method)
    (folder / "runs").rename(folder / "processes")
    (folder / "debugged").rename(folder / "runs")
    (debugged,), (usual,) = curve(folder, method), processes
    assert debugged.keys() == usual.keys()
    for name, value in usual.items():
        expected = pytest.approx(value, rel=1e-4, abs=1e-6) if type(value) is float else value
        assert debugged[name] == expected, name
