"""SIGTERM, which a scheduler sends before it takes the machine: stop in order, within a minute.

What is under way is abandoned at once where nothing is lost by it: answers of a round that has not
trained yet, an evaluation. Inside `finishing`, where weights change and files are written, the work
is given `GRACE` seconds to come to its end, and is abandoned then. Either way `Preempted` is raised
in the main thread; the run writes its checkpoint on the way out, and the exit code is 0.
"""

from __future__ import annotations

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
    finishing = 0
    """How many blocks of `finishing` are open."""


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
    _state.asked, _state.finishing = False, 0
    before = signal.signal(signal.SIGTERM, _terminated)
    alarm = signal.signal(signal.SIGALRM, _out_of_time)
    try:
        yield
    except (Preempted, Exception) as error:
        # The signal may have ended other processes of the run before this one.
        if _state.asked:
            raise Preempted(f"stopped by SIGTERM; go on with: {going_on}") from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def finishing() -> Iterator[None]:
    """Inside, SIGTERM waits for the end of the block, for at most `GRACE` seconds."""
    _state.finishing += 1
    try:
        yield
    finally:
        _state.finishing -= 1
    if _state.asked and not _state.finishing:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise Preempted


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    if _state.asked:
        return
    _state.asked = True
    if _state.finishing:
        signal.setitimer(signal.ITIMER_REAL, GRACE)
    else:
        raise Preempted


def _out_of_time(_signal: int, _frame: FrameType | None) -> None:
    raise Preempted
