"""SIGTERM: what it abandons, what it waits for, and what other errors it causes."""

from __future__ import annotations

import os
import signal
import time

import pytest

from cluster import preemption
from cluster.preemption import Preempted, finishing, preemptible, recognised


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)  # the handler runs between two bytecodes


def stopped_at_once() -> None:
    with preemptible("quartet train --resume RUN"):
        terminate()
        pytest.fail("nobody stopped")


def test_sigterm_abandons_what_is_under_way():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="go on with: quartet train --resume RUN"):
        stopped_at_once()
    assert signal.getsignal(signal.SIGTERM) == before


def stopped_after(done: list[str], *, failing: bool = False) -> None:
    with preemptible("x"):
        with finishing():
            terminate()
            with finishing():
                done.append("inner")
            if failing:
                raise RuntimeError("an actor is gone")
            done.append("outer")
        pytest.fail("nobody stopped")


def test_sigterm_waits_for_what_has_to_be_finished():
    done: list[str] = []
    with pytest.raises(Preempted):
        stopped_after(done)
    assert done == ["inner", "outer"]


def test_what_fails_because_of_sigterm_is_no_failure():
    with pytest.raises(Preempted):
        stopped_after([], failing=True)
    with pytest.raises(RuntimeError), preemptible("x"):
        raise RuntimeError("an actor is gone")


def never_done() -> None:
    with preemptible("x"), finishing():
        terminate()
        time.sleep(60)
        pytest.fail("nobody stopped")


def test_sigterm_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(preemption, "GRACE", 0.05)
    with pytest.raises(Preempted):
        never_done()


def foreign() -> None:
    """As Ray's C code does when the handler raises inside it."""
    try:
        terminate()
    except Preempted as stop:
        raise SystemError("returned a result with an exception set") from stop


def foreign_in_a_run() -> None:
    with preemptible("x"):
        with pytest.raises(Preempted) as stopped, recognised():
            foreign()
        assert isinstance(stopped.value.__cause__, SystemError)
        raise stopped.value


def test_what_foreign_code_makes_of_the_signal_is_the_signal():
    with pytest.raises(Preempted, match="go on with: x"):
        foreign_in_a_run()
