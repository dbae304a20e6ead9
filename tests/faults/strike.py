"""Strikes a running process from outside, at a given phase of a given round."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from actors.progress import read_note
from tests.faults.catalogue import Fault

PAUSE = 1.5
"""Seconds that a paused process is stopped."""


class Strike(threading.Thread):
    """Waits for the fault's moment, strikes once, and sees when the run goes on.

    `phase.json` and `processes.json` of the run folder say what the run does and who does it; a
    process's own notes say whether it is in the middle of it.
    """

    def __init__(self, fault: Fault, folder: Path, processes: Path):
        super().__init__(daemon=True)
        self.fault, self.folder, self.processes = fault, folder, processes
        self.struck: float | None = None
        self.went_on: float | None = None
        self._over = threading.Event()

    def run(self) -> None:
        """Poll, strike, poll."""
        while not self._over.is_set() and self.struck is None:
            time.sleep(0.001)
            now = self._now()
            if (now.get("round"), now.get("phase")) != (self.fault.round, self.fault.phase):
                continue
            target = self._find()
            if target is not None and self._is_busy(target, now["since"]):
                self._strike(int(target["pid"]))
        while not self._over.is_set() and self.went_on is None:
            time.sleep(0.005)
            now = self._now()
            if (now.get("round"), now.get("phase")) != (self.fault.round, self.fault.phase):
                self.went_on = time.time()

    def stop(self) -> None:
        """The run is over."""
        self._over.set()
        self.join()

    def _strike(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL if self.fault.how == "kill" else signal.SIGSTOP)
        self.struck = time.time()
        if self.fault.how == "pause":
            time.sleep(PAUSE)
            os.kill(pid, signal.SIGCONT)

    def _is_busy(self, target: dict[str, Any], since: float) -> bool:
        if not self.fault.doing:
            return True
        stamp, text = read_note(Path(target["notes"]))
        return stamp >= since - 0.06 and text.startswith(self.fault.doing)

    def _now(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / "phase.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def _find(self) -> dict[str, Any] | None:
        rows = json.loads(self.processes.read_text())
        return next((row for row in rows if row["role"] == self.fault.role), None)
