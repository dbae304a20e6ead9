"""What processes are doing that did not answer: stacks, state, the last finished sub-step."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from actors.progress import SIGNAL, read_note
from cluster.process import Place, Process, on_node

STATES = {"R": "running", "S": "waiting", "D": "waiting for a disk", "T": "stopped", "Z": "dead"}
PATIENCE = 2.0
"""Seconds for a process to write its stacks."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a node says of one of its processes."""

    state: str
    last: str
    """The last finished sub-step, and how long ago that was."""
    stacks: str


def look_at(process: Process) -> Look:
    """Ask the process's node; answers within seconds whatever the process does."""
    place = process.place()
    if place is None:
        return Look("not started yet", "nothing", "")
    found: Look | None = on_node(place.node_id, look_here, place)
    return found or Look("its node does not answer", "unknown", "")


def look_here(place: Place) -> Look:
    """Runs on the process's node."""
    stacks = Path(place.stacks)
    before = stacks.stat().st_size
    state = state_of(place.pid)
    if state not in ("dead", "stopped"):
        os.kill(place.pid, SIGNAL)
        until = time.monotonic() + PATIENCE
        size = -1
        while time.monotonic() < until and (size <= before or size != stacks.stat().st_size):
            size = stacks.stat().st_size
            time.sleep(0.05)
    stamp, text = read_note(Path(place.notes))
    dump = stacks.read_bytes()[before:].decode(errors="replace")
    return Look(state, f"{text}, {time.time() - stamp:.0f} s ago", dump)


def state_of(pid: int) -> str:
    """What the node says of a process of its own."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "dead"
    return STATES.get(letter, letter)


def write_stacks(folder: Path, title: str, processes: Iterable[Process]) -> tuple[Path, list[Look]]:
    """A file in the run folder with all of it; its path, and what was seen of each process."""
    looks, parts = [], [title]
    for process in processes:
        look = look_at(process)
        place = process.place()
        where = f"pid {place.pid} on {place.node}" if place else "no process"
        parts.append(
            f"== {process.role} rank {process.rank}, {where}: {look.state}\n"
            f"last finished sub-step: {look.last}\n"
            + (look.stacks or "no stacks: it did not react to a signal")
        )
        looks.append(look)
    target = folder / "stacks"
    target.mkdir(parents=True, exist_ok=True)
    file = target / f"{time.strftime('%Y%m%d-%H%M%S')}-{len(list(target.iterdir()))}.txt"
    file.write_text("\n\n".join(parts) + "\n")
    return file, looks
