"""Where a process's main thread is, looked at every few milliseconds from another thread.

Unlike a tracing profiler it slows nothing that is written in Python more than anything else. Each
look counts for the time since the one before. A thread that holds the interpreter's lock gives it
up when it is asked to, which by default takes longer than the interval: looks would then fall on
whatever gives it up by itself, such as reading a file, and so the wait is made short.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

INTERVAL = 0.004
"""Seconds between two looks."""
SWITCH = 0.0003
"""Seconds for which a thread may keep the interpreter's lock from one that asks for it."""
ROOT = Path(__file__).resolve().parent.parent
OURS = ("actors", "cluster", "rewards", "trainers")
LIBRARIES = ("vllm", "deepspeed", "transformers", "tokenizers", "torch", "PIL", "ray", "msgpack")
Sampled = tuple[float, float, str, str]
"""When (`time.perf_counter`, one clock for all processes of a host), for how many seconds, which
of our functions was innermost, and the library that it had called (or ours)."""


class Sampler:
    """Looks at the main thread from `start` to `stop`."""

    def __init__(self, interval: float = INTERVAL):
        self.interval = interval
        self._seen: list[Sampled] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._switch = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH)
        self._thread.start()

    def stop(self) -> list[Sampled]:
        """What was seen."""
        self._over.set()
        self._thread.join()
        sys.setswitchinterval(self._switch)
        return self._seen

    def _look(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        before = time.perf_counter()
        while not self._over.wait(self.interval):
            frame = sys._current_frames().get(main)
            now = time.perf_counter()
            if frame is not None and (place := placed(frame)) is not None:
                self._seen.append((now, now - before, *place))
            before = now


def placed(frame: FrameType | None) -> tuple[str, str] | None:
    """Our innermost function on the stack, and the library it called; None if none of ours is."""
    called = "ours"
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        package = name.partition(".")[0]
        if package in OURS and frame.f_code.co_filename.startswith(str(ROOT)):
            return f"{name}.{frame.f_code.co_qualname}", called
        if package in LIBRARIES:
            called = package
        frame = frame.f_back
    return None


def phase_of(moment: float, spans: Sequence[tuple[str, float, float]]) -> str:
    """The phase that `moment` lies in, of spans on the same clock; of nested ones the inner."""
    inside = [(end - start, name) for name, start, end in spans if start <= moment < end]
    return min(inside)[1] if inside else "between phases"
