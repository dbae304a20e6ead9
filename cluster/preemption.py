"""SIGTERM, which a scheduler sends before it takes the machine: stop in order, within a minute.

What is under way is abandoned at once where nothing is lost by it: answers of a round that has not
trained yet, an evaluation. Inside `finishing`, where weights change and files are written, the work
is given `GRACE` seconds to come to its end, and is abandoned then. Either way `Preempted` is raised
in the main thread; the run writes its checkpoint on the way out, and the exit code is 0.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 25.0
"""Seconds; with a report and Ray's end after them, it is over within 60."""


class Preempted(BaseException):
    """SIGTERM arrived; the message says what is left of the run. No `Exception`: nothing that
    handles failures may take it for one.
    """


class _State:
    asked = False
    """Whether SIGTERM has arrived."""
    stopping = False
    """Whether `Preempted` is on its way."""
    finishing = 0
    """How many blocks of `finishing` are open."""
    timer: threading.Timer | None = None
    """Sends SIGTERM once more when `GRACE` is over."""


_state = _State()


@contextmanager
def preemptible(going_on: str) -> Iterator[None]:
    """Inside, SIGTERM raises `Preempted`, whose message names the command `going_on`.

    Enter it after Ray has started, which has a handler of its own. In a thread other than the main
    one nothing can be handled, and nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.asked, _state.stopping, _state.finishing = False, False, 0
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        with recognised():
            yield
    except Preempted as stop:
        raise Preempted(f"stopped by SIGTERM; go on with: {going_on}") from stop
    finally:
        _stop_timer()
        signal.signal(signal.SIGTERM, before)


@contextmanager
def recognised() -> Iterator[None]:
    """An error that SIGTERM has caused is `Preempted`, too: Ray's C code makes a `SystemError` of
    what is raised inside it, and the signal may have ended other processes of the run.
    """
    try:
        yield
    except Exception as error:
        if _state.asked:
            raise Preempted from error
        raise


@contextmanager
def finishing() -> Iterator[None]:
    """Inside, SIGTERM waits for the end of the block, for at most `GRACE` seconds."""
    _state.finishing += 1
    try:
        yield
    finally:
        _state.finishing -= 1
    if _state.asked and not _state.finishing:
        _stop()


def ending() -> bool:
    """Whether SIGTERM has arrived, and a block of `finishing` is given time."""
    return _state.asked and not _state.stopping


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    if _state.stopping:
        return
    if _state.finishing and not _state.asked:
        _state.asked = True
        _state.timer = threading.Timer(GRACE, os.kill, (os.getpid(), signal.SIGTERM))
        _state.timer.daemon = True
        _state.timer.start()
        return
    _stop()  # nothing has to be finished, or it took too long


def _stop() -> None:
    _state.asked = _state.stopping = True
    _stop_timer()
    raise Preempted


def _stop_timer() -> None:
    if _state.timer is not None:
        _state.timer.cancel()
        _state.timer = None
