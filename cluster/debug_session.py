"""A run in one process (`--debug`): breakpoints, stepping and whole tracebacks everywhere.

The actors are plain classes, so here they are objects of this process. A call does its work at once
and leaves the result where `ray.get` finds it; so the loop, and all that it waits for, is the code
of any other run. Arguments and results are copied on the way, as between processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import ray

from cluster.group import TrainGroup
from cluster.process import Asked
from cluster.session import Session
from trainers.data.errors import UserError

_ACTORS: list[Any] = []


class LocalActor:
    """An actor's class in this process; `actor.method.remote(...)` as of an actor's handle."""

    def __init__(self, actor: type, **kwargs: Any):
        self.instance = actor(**kwargs)
        self._actor_id = uuid4().bytes
        """Has `hex()`, as Ray's ids do."""
        _ACTORS.append(self)

    def __getattr__(self, name: str) -> LocalCall:
        return LocalCall(getattr(self.instance, name))

    @property
    def __ray_call__(self) -> LocalCall:
        """Runs a function on the instance, as Ray's handles do."""
        return LocalCall(lambda function, *args: function(self.instance, *args))

    def __reduce__(self) -> tuple[Any, ...]:
        """A handle that is sent is the same actor where it arrives."""
        return _ACTORS.__getitem__, (_ACTORS.index(self),)


class LocalCall:
    """One method of a `LocalActor`."""

    def __init__(self, method: Callable[..., Any]):
        self.method = method

    def remote(self, *args: Any, **kwargs: Any) -> ray.ObjectRef:
        """Call it now. What it raises is raised here, with the whole stack, for a debugger."""
        result = self.method(*map(_copied, args), **{k: _copied(v) for k, v in kwargs.items()})
        return ray.put(result)


def _copied(value: Any) -> Any:
    """As it arrives in another process: a reference's content, or a copy."""
    return ray.get(value if isinstance(value, ray.ObjectRef) else ray.put(value))


class DebugSession(Session):
    """Ray runs, for its object store, but starts no process of ours.

    vLLM and DeepSpeed are then in one process, which other runs avoid; what a copy holds cannot be
    told apart, so the ledger stays empty.
    """

    def __enter__(self) -> DebugSession:
        if several := [r.role for r in self._demand.requests if r.num_processes > 1]:
            raise UserError(
                f"--debug runs in one process; {several[0]} has more (train.num_ranks, "
                "rollout.num_engines)"
            )
        # A worker has these from its start; here they must be there before the slow imports.
        os.environ.update(self._environment())
        self.not_direct = "with --debug policy and engine are one process"
        hook = os.environ.get("PYTHONBREAKPOINT")
        super().__enter__()
        # Ray puts a debugger of its own there.
        os.environ["PYTHONBREAKPOINT"] = hook or "pdb.set_trace"
        self.console.line("debug: one process, memory is not measured; breakpoint() works")
        return self

    def _start(
        self, actor: type, role: str, seat: int = 0, num_threads: int | None = None, **kwargs: Any
    ) -> Any:
        return LocalActor(actor, num_threads=num_threads or self.num_threads, **kwargs)

    @contextmanager
    def builder(self) -> Iterator[TrainGroup]:
        """One rank, as there is one process."""
        group = self.ranks("builder", 1, self.num_threads)
        group.connect()
        yield group
        group.ask("unload", limit="load")

    def ask_readings(self, phase: str) -> list[Asked]:
        """None; see the class."""
        return []
