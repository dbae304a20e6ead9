"""What this process finished last, in a small file that others can read while it hangs.

A process that waits in a collective or runs foreign code answers no question, and one that was
killed never will. So it writes down each finished sub-step where another process of its node finds
it, and dumps the stacks of all its threads when it is sent a signal (`faulthandler` does that in C,
so that neither a held interpreter lock nor a blocked main thread is in the way).
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from pathlib import Path

SIGNAL = signal.SIGUSR2
WIDTH = 200
"""Bytes of a note; it is written over the one before in a single call, so no reader sees half."""
_notes: int | None = None
_stacks: int | None = None


def watch_this_process(notes: Path, stacks: Path) -> None:
    """From now on `note` writes to `notes`, and the signal dumps all threads to `stacks`."""
    global _notes, _stacks
    notes.parent.mkdir(parents=True, exist_ok=True)
    _notes = os.open(notes, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    _stacks = os.open(stacks, os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_WRONLY, 0o600)
    faulthandler.register(SIGNAL, file=_stacks, all_threads=True)
    note("started")


def note(text: str) -> None:
    """Write down a finished sub-step. Does nothing in a process that nobody watches."""
    if _notes is not None:
        line = f"{time.time():.1f} {text}".encode()[: WIDTH - 1]
        os.pwrite(_notes, line.ljust(WIDTH - 1) + b"\n", 0)


def read_note(notes: Path) -> tuple[float, str]:
    """When the last sub-step was finished (seconds since the epoch), and which it was."""
    stamp, _, text = notes.read_text(errors="replace").strip().partition(" ")
    return float(stamp), text
