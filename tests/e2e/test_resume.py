"""A run that goes on from a checkpoint is the run that was never interrupted, to the bit."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.config import CompareConfig, RunConfig
from cluster.config_text import merge, to_yaml, validate
from cluster.preemption import Preempted
from cluster.resume import resume_compare, resume_train
from tests.e2e.outcomes import differences, outcome
from trainers import checkpoint
from trainers.data.errors import UserError

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "rollout": {"num_prompts": 8, "num_rollouts_per_prompt": 4, "max_tokens": 16},
    "eval": {"num_scenes": 6, "num_curve_scenes": 4},
    "train": {"parity_rollouts": 4},
    "judge_check": {"min_accuracy": 0.0},  # trained for a few steps, it knows nothing yet
    "num_threads": 1,
}
ANY_PAIR = {"pairs": {"margin": 0.0}}
METHODS = {
    "ppo": {"minibatch_size": 16, "critic_warmup_rounds": 1},
    "dpo": ANY_PAIR,
    "nsft": ANY_PAIR,
}
KILLS = int(os.environ.get("QUARTET_TEST_KILLS", "20"))
"""How often a run is killed; on a machine that others use, fewer show something, too."""


def settings(output: Path, method: dict[str, Any], *others: dict[str, Any]) -> RunConfig:
    values = {**SMALL, "output": str(output), "method": method}
    for other in others:
        values = merge(values, other)
    return validate(RunConfig, values)


def run(config: RunConfig) -> Path:
    """The folder of a new run."""
    from cluster.run import train

    assert train(config) == 0
    (folder,) = Path(config.output).iterdir()
    return folder


def test_ppo_goes_on_to_the_bit(stack, tiny_model):
    """All four copies' worth of state, on a model of random weights: nothing has to be built."""
    of_tiny = {"model": tiny_model, "judge": "tests.e2e.judge_functions:length"}
    method = {"name": "ppo", **METHODS["ppo"]}
    whole = run(settings(stack.root / "whole", method, of_tiny, {"rounds": 2}))
    halves = run(settings(stack.root / "halves", method, of_tiny, {"rounds": 1}))
    assert resume_train(halves, {"rounds": 2}) == 0
    assert differences(outcome(whole), outcome(halves)) == []
    assert checkpoint.rounds(halves / "checkpoints") == [1, 2]
    assert not (halves / "checkpoints" / ".unfinished").exists()
    one, other = ((folder / "run.log").read_text() for folder in (whole, halves))
    for text in ("ppo    round 1/", "ppo    round 2/"):
        assert one.count(text) == other.count(text) == 1

    # Refused, and nothing is changed: other weights than it began with, and a missing file.
    state = halves / "checkpoints" / "round_000002" / "state.json"
    shutil.copytree(tiny_model, stack.root / "changed")
    weights = stack.root / "changed" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    text = (halves / "config.yaml").read_text()
    (halves / "config.yaml").write_text(text.replace(tiny_model, str(stack.root / "changed")))
    with pytest.raises(UserError, match="the model is not what the run began with"):
        resume_train(halves, {"rounds": 3})
    (halves / "config.yaml").write_text(text)
    state.unlink()
    with pytest.raises(UserError, match=r"state\.json: the checkpoint lacks this file"):
        resume_train(halves, {"rounds": 3})
    assert (halves / "metrics.jsonl").read_text().count("\n") == 2


@pytest.fixture(scope="module")
def models(stack) -> dict[str, str]:
    """Base and judge after a few steps, by the settings that name them."""
    from cluster.base_model import WorldRecipe, ensure

    built = ensure(stack.session, WorldRecipe.quick())
    return {"model": str(built.base), "judge": str(built.judge)}


@pytest.fixture
def two_ranks(stack, monkeypatch):
    """Runs get a session of two ranks on the Ray that is there."""
    from cluster.session import Session

    session: Any = None

    class TwoRanks:
        def __init__(self, *, console: Any, **options: Any):
            self.console = console

        def __enter__(self) -> Any:
            nonlocal session
            if session is None:
                session = Session(num_threads=1, console=self.console, num_ranks=2).__enter__()
            session.console = self.console
            return session

        def __exit__(self, *exception: object) -> None:
            pass

    monkeypatch.setattr("cluster.run.Session", TwoRanks)
    yield
    import ray

    for process in session.processes():
        ray.kill(process.handle)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_goes_on_to_the_bit(stack, models, request, tmp_path, method, ranks):
    extra = {"train": {"num_ranks": ranks, "zero_stage": 2 if ranks > 1 else 0}}
    if ranks == 2:
        request.getfixturevalue("two_ranks")
    of = {"name": method, **METHODS[method]}
    whole = run(settings(tmp_path / "whole", of, models, extra, {"rounds": 4}))
    halves = run(settings(tmp_path / "halves", of, models, extra, {"rounds": 2}))
    assert resume_train(halves, {"rounds": 4}) == 0
    assert differences(outcome(whole), outcome(halves)) == []


@pytest.mark.slow
def test_an_averaged_reference_a_buffer_and_the_best_round_go_on(stack, models, tmp_path):
    of = {"name": "sapo", "ema_rate": 0.5, "replay_capacity": 6, "replay_draws": 4}
    extra = {
        "negatives": {
            "rejected": ["segment"],
            "chosen": "data",
            "segment_writer": "reference",
        },
        "eval": {"keep_best": "chair_i"},
        "checkpoint": {"keep": 1, "keep_best": "recall"},
    }
    whole = run(settings(tmp_path / "whole", of, models, extra, {"rounds": 4}))
    halves = run(settings(tmp_path / "halves", of, models, extra, {"rounds": 2}))
    assert (halves / "checkpoints" / "round_000002" / "reference" / "model.safetensors").is_file()
    assert resume_train(halves, {"rounds": 4}) == 0
    assert differences(outcome(whole), outcome(halves)) == []


@pytest.mark.slow
def test_fewer_ranks_go_on_to_rounding(stack, models, two_ranks, monkeypatch, tmp_path):
    from safetensors.torch import load_file

    of, ranks = {"name": "sft", **ANY_PAIR}, {"train": {"num_ranks": 2, "zero_stage": 2}}
    whole = run(settings(tmp_path / "whole", of, models, ranks, {"rounds": 2}))
    halves = run(settings(tmp_path / "halves", of, models, ranks, {"rounds": 1}))
    monkeypatch.undo()  # the session of one rank again
    assert resume_train(halves, {"rounds": 2, "train": {"num_ranks": 1, "zero_stage": 0}}) == 0
    one, other = (load_file(f / "final" / "model.safetensors") for f in (whole, halves))
    moved = [(one[name] - other[name]).abs() for name in one]
    assert max(float(gap.max()) for gap in moved) < 1e-3
    assert sum(float((gap > 1e-5).sum()) for gap in moved) < 0.05 * sum(g.numel() for g in moved)


@pytest.mark.slow
def test_a_stopped_comparison_goes_on(stack, tmp_path):
    """SIGTERM in the second arm's second round; the first arm is not run again."""
    from cluster.compare import compare

    values = {**SMALL, "quick": True, "rounds": 2, "arms": {"sft": {"method": ANY_PAIR}}}
    values["arms"]["dpo"] = {"method": ANY_PAIR}

    def config(name: str) -> CompareConfig:
        return validate(CompareConfig, values | {"output": str(tmp_path / name)})

    assert compare(config("whole")) == 0
    (whole,) = (tmp_path / "whole").iterdir()

    def stop() -> None:
        while not list((tmp_path / "halves").glob("*/dpo/checkpoints/round_000001")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Preempted, match="quartet compare --resume"):
        compare(config("halves"))
    (halves,) = (tmp_path / "halves").iterdir()
    written = json.loads((halves / "compare.json").read_text())["methods"]
    assert written["dpo"]["failure"] == "stopped by SIGTERM" and not written["sft"]["failure"]
    finished = (halves / "sft" / "metrics.jsonl").stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:  # again, before the engines are up
        patch.setattr("cluster.compare.set_engine", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            resume_compare(halves, {})
    again = json.loads((halves / "compare.json").read_text())
    assert again["methods"]["sft"] == written["sft"] and again["base"]["metrics"]
    assert resume_compare(halves, {}) == 0
    assert (halves / "sft" / "metrics.jsonl").stat().st_mtime_ns == finished
    for name in ("sft", "dpo"):
        assert differences(outcome(whole / name), outcome(halves / name)) == []
    one, other = (json.loads((f / "compare.json").read_text())["methods"] for f in (whole, halves))
    for name in ("sft", "dpo"):
        assert one[name]["metrics"] == other[name]["metrics"]
    assert "stopped by SIGTERM" not in (halves / "report.html").read_text()


# In processes of their own ----------------------------------------------------------------------

MARK = "QUARTET_TEST_RUN"
"""An environment variable that a run's processes inherit, Ray's too."""


def marked(name: str) -> str:
    """A value of `MARK` that no other test process on this machine uses."""
    return f"{os.getpid()}-{name}"


def start(name: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", "train", *words],
        cwd=ROOT,
        env={**os.environ, MARK: marked(name)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def require_nothing_left(name: str) -> None:
    """No process of the run outlives it by a minute; two of Ray's helpers, which hold no model, end
    by themselves some time later if Ray itself was just starting.
    """
    wanted = f"{MARK}={marked(name)}\0".encode()
    helpers = re.compile(r"ray::(DashboardAgent|RuntimeEnvAgent)\b")
    begun = time.monotonic()
    while True:
        left = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if wanted in path.read_bytes() and int(path.parent.name) != os.getpid():
                    line = (path.parent / "cmdline").read_text().replace("\0", " ")
                    if line:  # without one it is on its way out
                        left.append(" ".join(line.split()))
            except OSError:  # it has ended, or is not ours
                continue
        if not left:
            return
        waited = time.monotonic() - begun
        if waited > (300 if all(helpers.match(line) for line in left) else 60):
            pytest.fail(f"left behind: {left}")
        time.sleep(0.5)


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_is_the_same(stack, models, tmp_path):
    chance = random.Random(os.environ.get("PYTEST_SEED", "kill"))
    method, rounds = {"name": "dpo", **ANY_PAIR}, {"rounds": 6}
    whole = run(settings(tmp_path / "whole", method, models, rounds))
    config = settings(tmp_path / "killed", method, models, rounds)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    words = ["dpo", "--config", str(tmp_path / "run.yaml")]
    begun = time.monotonic()
    process = start("first", *words)
    while not list((tmp_path / "killed").glob("*/checkpoints/round_000001")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    usual = time.monotonic() - begun
    (folder,) = (tmp_path / "killed").iterdir()
    for number in range(KILLS):
        process.kill()
        process.wait()
        require_nothing_left("first" if number == 0 else f"{number}")
        if number % 5 == 4:  # from the start: otherwise the rounds would be over long before
            for path in (folder / "checkpoints").iterdir():
                shutil.rmtree(path)
        process = start(f"{number + 1}", "--resume", str(folder))
        try:
            process.wait(timeout=chance.uniform(0.0, 1.3 * usual))
        except subprocess.TimeoutExpired:
            continue
        assert process.returncode == 0, process.communicate()[1]
    process.wait()
    assert process.returncode == 0, process.communicate()[1]
    assert differences(outcome(whole), outcome(folder)) == []


@pytest.mark.slow
def test_sigterm_ends_a_run_in_order(stack, models, tmp_path):
    method, rounds = {"name": "dpo", **ANY_PAIR}, {"rounds": 4}
    whole = run(settings(tmp_path / "whole", method, models, rounds))
    config = settings(tmp_path / "stopped", method, models, rounds, {"checkpoint": {"every": 3}})
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    process = start("sigterm", "dpo", "--config", str(tmp_path / "run.yaml"))
    while not list((tmp_path / "stopped").glob("*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    begun = time.monotonic()
    process.terminate()
    _, said = process.communicate(timeout=60)
    print(f"stopped after {time.monotonic() - begun:.1f} s")
    assert process.returncode == 0
    (folder,) = (tmp_path / "stopped").iterdir()
    assert f"stopped by SIGTERM; go on with: quartet train --resume {folder}" in said
    require_nothing_left("sigterm")
    # None was due yet: this one was written because the signal came.
    assert checkpoint.rounds(folder / "checkpoints")[-1] in (1, 2)
    assert resume_train(folder, {"checkpoint": {"every": 1}}) == 0
    one, other = outcome(whole), outcome(folder)
    assert [name for name in differences(one, other) if "checkpoints" not in name] == []
