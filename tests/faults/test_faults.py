"""Every fault of the catalogue, on real processes: the run ends well or with one clear error.

`FAULT_RESULTS=docs/reliability.json` keeps what was seen; `python -m tests.faults.table` makes
`docs/reliability.md` of it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.arm import Arm
from cluster.config import RunConfig
from cluster.config_text import merge, validate
from tests.faults import judge_functions
from tests.faults.catalogue import CATALOGUE, Fault
from tests.faults.strike import Strike
from trainers.data.record_file import read_records
from trainers.data.records import ScoredRollout

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.timeout(1200)]

ROUNDS = 3
SMALL: dict[str, Any] = {
    "rounds": ROUNDS,
    "rollout": {
        "num_prompts": 6,
        "num_rollouts_per_prompt": 3,
        "max_tokens": 16,
        "kv_cache_mib": 32,
    },
    "train": {"parity_rollouts": 4, "checksum_every": 1, "parity_tolerance": 1e-3},
    "eval": {"num_scenes": 2, "num_curve_scenes": 2},
    "judge": "tests.faults.judge_functions:good",
    "judge_check": {"min_accuracy": 0.0},
    "num_threads": 1,
}
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo", "minibatch_size": 2, "pairs": {"margin": 0.0}},
    "rpo": {"name": "rpo", "minibatch_size": 2, "pairs": {"margin": 0.0}},
    "ppo": {"name": "ppo", "minibatch_size": 4, "critic_minibatch_size": 4},
    "nsft": {"name": "nsft", "minibatch_size": 2, "pairs": {"margin": 0.0}},
}
FAST = {"kill-rollout-generate-dpo"}
"""What the default suite runs; the others are slow."""


@dataclass
class Ground:
    """One session for all faults: its engine stays loaded between them."""

    session: Any
    root: Path
    model: str
    store: Any
    held_out: Any


@pytest.fixture(scope="module")
def ground(shared_session, tiny_model, tmp_path_factory) -> Iterator[Ground]:
    from cluster.console import Console
    from cluster.heldout import HeldOut
    from trainers.data.images import ImageStore

    root = tmp_path_factory.mktemp("faults")
    store = ImageStore(root / "images")
    before = shared_session.console
    with Console(root / "run.log", interactive=False) as console:
        shared_session.console = console
        yield Ground(shared_session, root, tiny_model, store, HeldOut(store, 2, 2))
    shared_session.console = before


def make_arm(ground: Ground, fault: Fault) -> Arm:
    from trainers.registry import make_method

    values = merge({**SMALL, "method": METHODS[fault.method]}, fault.settings)
    config = validate(RunConfig, values | {"model": ground.model})
    folder = ground.root / fault.id.replace(" ", "_")
    folder.mkdir()
    return Arm(
        name=fault.method,
        method=make_method(config.method),
        config=config,
        model_dir=ground.model,
        critic_dir=ground.model,
        folder=folder,
        image_root=str(ground.store.root),
    )


def run(ground: Ground, arm: Arm) -> str | None:
    """The real loop, from loading engines to the final model; the error, if it ends with one."""
    from cluster import judges
    from cluster.compare import engine_spec
    from cluster.driver import run_arm
    from cluster.failures import RunFailedError, RunStoppedError, reported
    from cluster.negatives import rollout_source
    from cluster.sources import DrawnPrompts

    session, config = ground.session, arm.config
    prompts = DrawnPrompts(ground.store, config.rollout.num_prompts, config.seed)
    spec = engine_spec(ground.model, ground.store, config)
    try:
        with reported(session.console, arm.folder):
            session.wait.deadlines = config.deadlines
            loaded = session.recipes.get("rollout")
            if loaded is None or loaded.load is None or loaded.load().args != (spec,):
                session.load_rollout(spec)
            judges.load_judge(session, config.judge, ground.store, config)
            source = rollout_source(session, arm, prompts)
            run_arm(session, arm, source, lambda: ground.held_out.quick(session))
    except (RunStoppedError, RunFailedError) as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(each, id=each.id, marks=() if each.id in FAST else pytest.mark.slow)
        for each in CATALOGUE
    ],
)
def test_fault(ground, fault, monkeypatch):
    arm = make_arm(ground, fault)
    restarts = len(ground.session.restarts)
    for name in ("dies", "crashes"):
        judge_functions.marker(name).unlink(missing_ok=True)
    strike = Strike(fault, arm.folder, ground.root / "processes.json")
    begun = time.time()
    if fault.how in ("kill", "freeze", "pause"):
        strike.start()
    elif fault.how == "corrupt":
        corrupt(monkeypatch, arm, fault)
    elif fault.how == "disk":
        fill(arm.folder)
    try:
        error = run(ground, arm)
    finally:
        if strike.ident is not None:
            strike.stop()
        if fault.how == "disk":
            subprocess.run(["umount", str(arm.folder)], check=True)
    ended = time.time()
    if strike.ident is not None:
        assert strike.struck is not None, "the fault was not injected"
    account = arm.result.account
    assert account.lost == account.doubled == 0
    assert account.asked == account.judged + account.dropped
    if fault.ends == "stopped":
        assert error is not None
        assert re.search(fault.message, error), error
        assert "\n" not in error
    else:
        assert error is None, error
        check_finished(arm, fault)
    recovered = (strike.went_on if error is None else ended) or ended
    restarted = ground.session.restarts[restarts:]
    if error is None and fault.how == "kill":
        assert restarted, "nothing was restarted"
    since = strike.struck or begun
    keep(
        fault,
        what=error or ("restarted: " + ", ".join(restarted) if restarted else "went on"),
        seconds=recovered - since,
        lost=account.lost,
        doubled=account.doubled,
    )


def check_finished(arm: Arm, fault: Fault) -> None:
    """All rounds are there, each rollout once, made by the weights of its round."""
    assert [point.round for point in arm.result.curve] == list(range(1, ROUNDS + 1))
    assert arm.result.account.asked == ROUNDS * 18
    seen: set[str] = set()
    for number in range(1, ROUNDS + 1):
        records = read_records(arm.folder / "rounds" / f"round_{number:06d}.msgpack").records
        rollouts = [item.rollout for item in records if isinstance(item, ScoredRollout)]
        assert len(rollouts) == 18
        assert {item.policy_version for item in rollouts} == {number}
        assert not seen & {item.id for item in rollouts}
        seen |= {item.id for item in rollouts}
    lines = [json.loads(line) for line in (arm.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, ROUNDS + 1))
    assert all(line["parity"] < 1e-3 for line in lines)
    assert (arm.folder / "final" / "model.safetensors").is_file()


def corrupt(monkeypatch: pytest.MonkeyPatch, arm: Arm, fault: Fault) -> None:
    """Change bytes of the buckets where they lie in the object store, before they are fetched."""
    import cluster.sync

    ask = cluster.sync.policy_buckets
    struck: list[int] = []

    def tampered(session: Any, arm: Arm) -> Any:
        reference = ask(session, arm)
        target = fault.role == "rollout" or arm.clock.spans[-1][0] == "train"
        if arm.round == fault.round and target and (fault.detail != "once" or not struck):
            struck.append(arm.round)
            bucket = ray.get(reference)[0]
            array = max(bucket.arrays, key=lambda item: item.nbytes)
            ctypes.memset(array.ctypes.data, 0x3F, min(array.nbytes, 4096))
        return reference

    monkeypatch.setattr(cluster.sync, "policy_buckets", tampered)


def fill(folder: Path) -> None:
    """A file system of 64 KiB that is nearly full, in the run folder's place."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    size = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    subprocess.run(size, check=True)
    (folder / "filler").write_bytes(b"\0" * 45_000)


def keep(fault: Fault, **seen: Any) -> None:
    """Add what was seen to the file that the table is made of."""
    if (path := os.environ.get("FAULT_RESULTS")) is None:
        return
    file = Path(path)
    rows = json.loads(file.read_text()) if file.is_file() else {}
    rows[fault.id] = seen | {"seconds": round(seen["seconds"], 1)}
    file.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
