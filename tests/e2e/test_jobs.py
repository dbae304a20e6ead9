"""Ray jobs on a real head with its dashboard and token: submit, follow, stop, fetch, refuse."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainers import checkpoint

pytestmark = pytest.mark.timeout(1800)
ROOT = Path(__file__).parents[2]
SMALL = (
    "--rounds 1 --num_threads 1 --rollout.num_prompts 8 --rollout.max_tokens 8 "
    "--judge_check.min_accuracy 0"
)


@dataclass
class Head:
    """A cluster of one node, and a user's folder to submit from."""

    address: str
    environment: dict[str, str]
    home: Path
    """Where jobs write."""
    folder: Path

    def quartet(self, *words: str, **options) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cluster.cli", "submit", "--address", self.address, *words],
            capture_output=True,
            text=True,
            timeout=880,
            cwd=self.folder,
            env=self.environment | options.get("env", {}),
        )


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    # Unix sockets below it have room for some hundred letters.
    temporary = Path(tempfile.mkdtemp(prefix="qj", dir="/tmp"))
    root = tmp_path_factory.mktemp("jobs")
    home, folder = root / "home", root / "folder"
    for path in (home, folder):
        path.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "180",
    }
    names = (
        "port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port",
        "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port",
    )  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    log = root / "head.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
                *(f"--{name}={port}" for name, port in ports.items()),
                *("--num-cpus=2", "--object-store-memory=200000000", f"--temp-dir={temporary}"),
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment | {"RAY_AUTH_MODE": "token", "QUARTET_HOME": str(home)},
        )
    head = Head(f"http://127.0.0.1:{ports['dashboard-port']}", environment, home, folder)
    try:
        until = time.monotonic() + 240
        while "will now block" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield head
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.ray
def test_a_checkout_is_uploaded_and_a_broken_config_comes_back_as_its_line(head):
    """The checkout is small enough with its ignore files, and the token is found and sent."""
    done = head.quartet("--working-dir", str(ROOT), "train", "ppo", "--rollout.num_promts", "3")
    assert "unknown key 'rollout.num_promts'; did you mean 'num_prompts'?" in done.stdout
    assert done.returncode == 2, done.stderr
    assert not list(head.home.iterdir())


@pytest.mark.ray
@pytest.mark.slow
def test_what_cannot_be_submitted_is_one_line(head):
    cases = {
        "status 404": (["--status", "none"], {}),
        "Invalid authentication token; set RAY_AUTH_TOKEN": (["--list"], {"RAY_AUTH_TOKEN": "x"}),
        "everybody who sees the dashboard": (["--env", "MY_TOKEN=1", "train", "ppo"], {}),
        "no such folder": (["--working-dir", "nowhere", "train", "ppo"], {}),
        "no command": ([], {}),
    }
    for line, (words, environment) in cases.items():
        done = head.quartet(*words, env=environment)
        assert done.returncode == 2 and line in done.stderr, (line, done.stderr)
        assert len(done.stderr.splitlines()) == 1


def user_folder(head: Head, seconds: float) -> Path:
    """Data and a judge beside a copy of the packages, as a project has them."""
    from PIL import Image

    for package in ("actors", "cluster", "rewards", "trainers"):
        if not (head.folder / package).exists():
            shutil.copytree(ROOT / package, head.folder / package)
    Image.new("RGB", (72, 72), (60, 80, 90)).save(head.folder / "a.png")
    row = json.dumps({"images": ["a.png"], "prompt": "describe the image ."}) + "\n"
    (head.folder / "train.jsonl").write_text(row * 40)
    (head.folder / "my_judge.py").write_text(
        f"import time\ndef score(response, **rest):\n    time.sleep({seconds})\n"
        "    return len(response)\n"
    )
    return head.folder


def train(model: str, *words: str) -> list[str]:
    base = ["train", "dpo", "--model", model, "--data", "train.jsonl", "--judge", "my_judge:score"]
    return [*base, *SMALL.split(), *words]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_submit_follow_succeed_and_fetch(head, tiny_model):
    user_folder(head, seconds=0)
    done = head.quartet(*train(tiny_model))
    assert done.returncode == 0, done.stdout + done.stderr
    job = done.stdout.split("job: ")[1].split()[0]
    (run,) = (head.home / "runs").iterdir()
    assert f"run folder: {run}" in done.stdout and "dpo    round 1/1" in done.stdout
    status = head.quartet("--status", job).stdout
    assert status.startswith(f"{job} SUCCEEDED, exit code 0: python -m cluster.cli train dpo")
    assert head.quartet("--fetch", job).stdout.strip() == f"runs/{run.name}"
    local = head.folder / "runs" / run.name
    assert (local / "compare.json").read_bytes() == (run / "compare.json").read_bytes()
    assert not (local / "final").exists() and (run / "final").is_dir()
    again = head.quartet("--fetch", job)
    assert again.returncode == 2 and "exists; remove it" in again.stderr


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_submit_and_stop(head, tiny_model):
    user_folder(head, seconds=1)
    done = head.quartet("--detach", *train(tiny_model, "--rounds", "50", "--name", "stopped"))
    job = done.stdout.removeprefix("job: ").strip()
    assert done.returncode == 0 and job
    until = time.monotonic() + 250
    while not list(head.home.glob("runs/stopped-*/rounds/*.msgpack")):
        said = head.quartet("--status", job).stdout
        assert time.monotonic() < until and ("RUNNING" in said or "PENDING" in said), said
        time.sleep(1)
    done = head.quartet("--stop", job)
    assert done.returncode == 0 and f"{job} STOPPED" in done.stdout
    # It was given the time to end in order.
    (run,) = head.home.glob("runs/stopped-*")
    assert checkpoint.rounds(run / "checkpoints")
    assert "stopped by SIGTERM" in (run / "compare.json").read_text()
    assert f"{job} STOPPED" in head.quartet("--list").stdout
