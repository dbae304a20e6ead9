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
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.arm import Arm
from tests.faults import hosts, judge_functions
from tests.faults.catalogue import CATALOGUE, Fault, nodes
from tests.faults.ground import Ground, check_finished, make_arm, run
from tests.faults.strike import Strike

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.timeout(1200)]

FAST = {"kill-rollout-generate-dpo"}
"""What the default suite runs; the others are slow."""


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
            subprocess.run(["umount", "--lazy", str(arm.folder)], check=True)
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
        check_finished(arm)
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


def corrupt(monkeypatch: pytest.MonkeyPatch, arm: Arm, fault: Fault) -> None:
    """Change bytes of the buckets where they lie in the object store, before they are fetched."""
    import cluster.sync

    ask = cluster.sync.policy_buckets
    struck: list[int] = []

    def tampered(session: Any, arm: Arm, *others: Any) -> Any:
        reference = ask(session, arm, *others)
        phase = json.loads((arm.folder / "phase.json").read_text())["phase"]
        now = (arm.round, phase) == (fault.round, fault.phase)
        if now and (fault.detail != "once" or not struck):
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


@pytest.mark.slow
@pytest.mark.parametrize("fault", [pytest.param(each, id=each.id) for each in nodes()])
def test_a_node_that_is_lost_frees_its_role_for_another(fault, tiny_model, tmp_path):
    """On two nodes of this machine, in a process that belongs to no Ray yet."""
    if fault.detail == "network cut" and not hosts.possible():
        pytest.skip("making a network namespace needs root and `ip`")
    command = [sys.executable, "-m", "tests.faults.two_nodes", fault.id, tiny_model, str(tmp_path)]
    # A cluster made of two local nodes has no token file to share.
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    subprocess.run(command, check=True, timeout=1000, env=environment)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["error"] is None
    assert fault.role in seen["restarts"] and seen["moved"]
    what = "on the node that is left: " + ", ".join(seen["restarts"])
    keep(
        fault,
        what=f"restarted {what}",
        seconds=seen["seconds"],
        lost=seen["lost"],
        doubled=seen["doubled"],
    )
