"""The processes of a role that answer calls: engines, judge, reference, writer.

Usually one. Several rollout engines are data parallel: each holds all weights, answers its part of
a call's prompts and takes every weight sync (`cluster.rollouts`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray.exceptions import RayError

from cluster.deadlines import Limit
from cluster.failures import RunStoppedError
from cluster.process import Asked, Process
from cluster.recipe import Call, Recipe
from cluster.rollouts import dealt, joined
from cluster.wait import ProcessLostError, Wait


class ServedGroup:
    """Processes of one role; a dead one is replaced and its part of the call done again.

    Args:
        may_replace: whether a process is one of a served group, this or another.
        replaced: told of a process that was brought back.
    """

    def __init__(
        self,
        processes: Sequence[Process],
        wait: Wait,
        may_replace: Callable[[Process], bool],
        replaced: Callable[[Process], None],
        warn: Callable[[str], None],
    ):
        self.processes, self.wait = list(processes), wait
        self.may_replace, self.replaced, self.warn = may_replace, replaced, warn
        self.recipe = Recipe()
        """What brings a new process to where the others are; the same for all."""
        self.one_seed = False
        """Of engines: whether each answer has a seed of its own."""
        self._under_way: list[Asked] = []

    def handles(self) -> list[Any]:
        """Ray handles of living processes."""
        for process in self.processes:
            if process.lost:
                self._bring_back(process, "")
        return [process.handle for process in self.processes]

    def ask(self, name: str, *args: Any, limit: Limit, stays: bool = False, **kwargs: Any) -> Any:
        """The result of one call; its reference, if it `stays` where it is (of one process only).

        The first result of a process that dies never arrived, so that nothing is there twice.

        Raises:
            ProcessLostError: it died more often than `deadlines.restarts`, or a trainer did.
            DeadlineError: there was no answer in time. The process is killed; its next use starts a
                new one.
        """
        return self.finish(self.begin(name, *args, stays=stays, **kwargs), limit=limit)

    def begin(self, name: str, *args: Any, stays: bool = False, **kwargs: Any) -> Begun:
        """Send a call, and wait for nothing; several may be under way, and are done in order."""
        if name == "load":
            self.one_seed = getattr(args[0], "seeds", None) == "answer"
        call = Call(name, args, kwargs)
        parts = dealt(call, len(self.processes), one_seed=self.one_seed)
        asked = tuple(
            (process, part, None if process.lost else _sent(process, part, stays))
            for process, part in zip(self.processes, parts, strict=True)
            if part is not None
        )
        self._under_way += [each for _, _, each in asked if each is not None]
        return Begun(call, asked, stays)

    def finish(
        self, begun: Begun, *, limit: Limit, unless: Callable[[], bool] | None = None
    ) -> Any:
        """The result of a call that was begun; as `ask`.

        Raises:
            NotWantedError: it was not there when `unless` came true.
        """
        try:
            results = [self._result(*each, limit, begun.stays, unless) for each in begun.asked]
        finally:
            self._under_way = [each for each in self._under_way if not self.wait.answered([each])]
        self.recipe.note(begun.call)
        if len(self.processes) == 1:
            return results[0]
        return joined(begun.call.name, results)

    def drop(self, limit: Limit) -> None:
        """Wait for calls that were begun and whose results nobody takes: what is asked next would
        be done after them. A process that takes too long with one is killed, as everywhere.
        """
        for asked in self._under_way:
            try:
                self.wait([asked], limit)
            except (RunStoppedError, RayError):  # its errors are nobody's either
                continue
        self._under_way.clear()

    def _result(
        self,
        process: Process,
        part: Call,
        asked: Asked | None,
        limit: Limit,
        stays: bool,
        unless: Callable[[], bool] | None,
    ) -> Any:
        for left in range(self.wait.deadlines.restarts, -1, -1):
            try:
                if asked is None:
                    if process.lost:
                        self._bring_back(process, part.name)
                    asked = _sent(process, part, stays)
                return self.wait([asked], limit, unless=unless)[0]
            except ProcessLostError as error:
                if not left or not self.may_replace(error.process):
                    raise
                self.warn(f"{error}; a new process takes over")
                if error.process is not process:  # which this one had asked, and still would
                    process.kill()
                asked = None
        raise AssertionError("the last attempt returns or raises")

    def _bring_back(self, process: Process, before: str) -> None:
        process.replace()
        for call in self.recipe.calls(before):
            limit: Limit = "sync" if call.name in ("update_weights", "refresh") else "load"
            self.wait([process.send(call.name, *call.args, **call.kwargs)], limit)
        self.replaced(process)


@dataclass(frozen=True, slots=True)
class Begun:
    """A call that was sent to the processes of a role, and whose result is to come."""

    call: Call
    asked: tuple[tuple[Process, Call, Asked | None], ...]
    stays: bool


def _sent(process: Process, part: Call, stays: bool) -> Asked:
    return replace(process.send(part.name, *part.args, **part.kwargs), stays=stays)
