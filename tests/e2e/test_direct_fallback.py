"""A whole run whose direct weight syncs cannot work: it takes a CPU for a GPU.

The choice is forced; all that follows is real: vLLM's IPC engine opens an update and waits half
loaded, the policy's process fails to export its buffer, and the run goes on, or does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.transports import Choice
from tests.faults.ground import Ground, check_finished, make_arm, run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.deepspeed,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without a GPU"),
]


@pytest.fixture
def ground(shared_session, tiny_model, tmp_path, monkeypatch) -> Iterator[Ground]:
    from cluster import direct_sync
    from cluster.console import Console
    from cluster.heldout import HeldOut
    from trainers.data.images import ImageStore

    monkeypatch.setattr(direct_sync, "senders", lambda plan: (0,))  # of a plan without GPUs
    store = ImageStore(tmp_path / "images")
    before = shared_session.console
    with Console(tmp_path / "run.log", interactive=False) as console:
        shared_session.console = console
        yield Ground(shared_session, tmp_path, tiny_model, store, HeldOut(store, 2, 2))
    shared_session.console = before
    shared_session.not_direct, shared_session.direct_worked = "", False
    for process in shared_session.served("rollout").processes:
        process.kill()  # it may be in the midst of an update


def forced(monkeypatch: Any, *, falls_back: bool) -> None:
    choice = Choice("ipc", "forced by the test", falls_back=falls_back)
    monkeypatch.setattr("cluster.session.choose_transport", lambda *args, **kwargs: choice)


def test_auto_goes_on_through_the_object_store(ground, monkeypatch):
    forced(monkeypatch, falls_back=True)
    arm = make_arm(ground, SimpleNamespace(id="auto", method="dpo", settings={}))
    restarts = len(ground.session.restarts)
    assert run(ground, arm) is None
    check_finished(arm)  # three rounds, each with the weights of its own sync
    assert ground.session.restarts[restarts:] == ["rollout"]  # once, at the first sync
    log = (ground.root / "run.log").read_text()
    assert log.count("train.transport=auto goes on through host memory") == 1
    assert "trainer failed in outbox: " in log
    assert ground.session.transport.transport == "object_store"
    assert arm.result.conditions.rollout_copy.transport == "object_store"


def test_a_named_transport_ends_with_what_failed(ground, monkeypatch):
    forced(monkeypatch, falls_back=False)
    arm = make_arm(ground, SimpleNamespace(id="named", method="dpo", settings={}))
    error = run(ground, arm)
    assert error is not None and error.startswith("trainer failed in outbox: ")
