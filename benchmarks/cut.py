"""A command with a time limit that leaves nothing behind: its processes, however they were started.

Ray's daemons, DeepSpeed's ranks and vLLM's engines have sessions of their own, and outlive a parent
that is killed. They all inherit its environment: a mark in it finds them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "QUARTET_BENCHMARK"
"""A variable: ids of the commands that a process belongs to, the outermost first."""
GRACE = 5.0
"""Seconds that processes have to end by themselves."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int | None
    """None: it was cut."""
    failure: str
    """What it said, or that it was cut; empty where it succeeded."""


def run(command: Sequence[str], seconds: float, folder: Path) -> Ended:
    """Run a command for at most so many seconds. At its end none of its processes is left, and none
    of the temporary files that they made below `folder`.
    """
    mark = f"{os.environ.get(MARK, '')}/{uuid.uuid4().hex}"
    said, temporary = folder / "said.txt", Path(tempfile.mkdtemp(prefix="t", dir=folder))
    # Ray's sockets lie below its folder, and the path of a socket is short: it stays where it was.
    ray = {"RAY_TMPDIR": os.environ.get("RAY_TMPDIR", tempfile.gettempdir())}
    environment = {**os.environ, **ray, MARK: mark, "TMPDIR": str(temporary)}
    code = None
    try:
        # To a file: a pipe would not end before every process that has inherited it.
        with said.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                list(command),
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=GRACE)
            finally:
                end_marked(mark)
                process.wait()
        text = said.read_text(encoding="utf-8", errors="replace")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if code is None:
        return Ended(None, f"cut after its {seconds:.0f} s")
    return Ended(code, reason(text) if code else "")


def reason(text: str) -> str:
    """The line that says why a command failed. Progress bars are flushed after it."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    if not lines:
        return "no message"
    return next(
        (line for line in reversed(lines) if "Error" in line or "error:" in line), lines[-1]
    )


def said(error: Exception) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def end_marked(mark: str) -> None:
    """Kill every process of ours whose environment has this mark, until none is left."""
    end = time.monotonic() + GRACE
    while (found := marked(mark)) and time.monotonic() < end:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def marked(mark: str) -> list[int]:
    """Processes, this one apart, that were started by the command of this mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is somebody else's
            continue
        if any(variable.startswith(wanted) for variable in variables):
            found.append(int(entry.name))
    return found
