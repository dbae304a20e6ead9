"""One actor by its role and rank, in a process that can be killed, replaced and looked into."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.progress import watch_this_process


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process runs, and the node's files that say what it does."""

    pid: int
    node_id: str
    node: str
    """Address of the node."""
    notes: str
    stacks: str


class Process:
    """A role's actor of one rank; started at once, and again by `replace`.

    Args:
        start: makes the Ray actor.
        session: part of the names of its files.
    """

    def __init__(self, role: str, rank: int, start: Callable[[], Any], session: str = "session"):
        self.role, self.rank, self._start, self._session = role, rank, start, session
        self.number = 0
        """How often it was replaced."""
        self._launch()

    def _launch(self) -> None:
        self.lost = False
        """It died, or was killed because it did not answer."""
        self.handle = self._start()
        self._place: Place | None = None
        name = f"{self.role}-{self.rank}-{self.number}"
        self._introduction = self.handle.__ray_call__.remote(introduce, self._session, name)

    @property
    def name(self) -> str:
        """`judge/0`; `judge/0+1` after it was replaced once."""
        return f"{self.role}/{self.rank}" + (f"+{self.number}" if self.number else "")

    def send(self, call: str, *args: Any, **kwargs: Any) -> Asked:
        """Ask it to do something; nothing waits."""
        return Asked(self, call, getattr(self.handle, call).remote(*args, **kwargs))

    def place(self, timeout: float = 1.0) -> Place | None:
        """Where it runs; None for one that has not come up by now."""
        if self._place is None:
            try:
                self._place = ray.get(self._introduction, timeout=timeout)
            except RayError:  # too early, or never: both are known from what was asked of it
                return None
        return self._place

    def kill(self) -> None:
        """End the process, a frozen one too."""
        self.lost = True
        place = self.place()
        ray.kill(self.handle)
        if place is not None:  # Ray asks it to leave, which a stopped process does not hear
            on_node(place.node_id, end_process, place.pid)

    def replace(self) -> None:
        """A new process in place of a dead one; it has loaded nothing yet."""
        self.number += 1
        self._launch()


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that was sent to a process, and the result to come."""

    process: Process
    call: str
    reference: Any
    stays: bool = False
    """The result is left where it is: weights need not pass through the driver."""


def introduce(_actor: Any, session: str, name: str) -> Place:
    """Runs first in every actor: where it is, with its notes and stacks opened."""
    folder = Path(tempfile.gettempdir()) / f"quartet-{session}"
    notes, stacks = folder / f"{name}.note", folder / f"{name}.stacks"
    watch_this_process(notes, stacks)
    return Place(
        pid=os.getpid(),
        node_id=ray.get_runtime_context().get_node_id(),
        node=ray.util.get_node_ip_address(),
        notes=str(notes),
        stacks=str(stacks),
    )


def on_node(node_id: str, task: Callable[..., Any], *args: Any) -> Any:
    """Run a small function on a node; here, if that is where this process runs.

    None if the node does not answer within 10 s: it is gone, then, with all its processes.
    """
    if ray.get_runtime_context().get_node_id() == node_id:
        return task(*args)
    there = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    remote = ray.remote(task).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    try:
        return ray.get(remote.remote(*args), timeout=10)
    except RayError:
        return None


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that whoever reads it never sees a part."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text)
    unfinished.replace(path)


def end_process(pid: int) -> None:
    """Kill a process of this node, if it is there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
