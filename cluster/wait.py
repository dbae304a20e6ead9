"""The one door through which the driver waits for processes: with a limit, and by name.

Whatever a process does, `Wait` ends: with its result, with its own error, with `ProcessLostError`
if it died, or with `DeadlineError` when the limit of the call has passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError

from cluster.deadlines import DeadlinesConfig, Limit
from cluster.failures import RunStoppedError
from cluster.process import Asked, Process
from cluster.stacks import write_stacks

LOOK = 0.5
"""Seconds between two looks whether results are still wanted."""
GRACE = 10.0
"""Seconds that the other ranks have to end by themselves after one of them failed."""


class ProcessLostError(RunStoppedError):
    """A process died while it was waited for."""

    def __init__(self, process: Process, call: str):
        self.process, self.call = process, call
        place = process.place()
        where = f"pid {place.pid} on {place.node}" if place else "which never came up"
        super().__init__(
            f"{process.role} (rank {process.rank}, {where}) ended unexpectedly in {call}, most "
            "often for lack of memory (lower rollout.num_prompts, train.micro_batch_size or "
            "rollout.kv_cache_mib)"
        )


class DeadlineError(RunStoppedError):
    """A call took longer than its limit."""


class NotWantedError(Exception):
    """Nobody wants the result any more that was waited for."""


class Wait:
    """Waits for calls; one for all processes of a session.

    Args:
        deadlines: the limits.
        folder: of the run, for the stacks of what does not answer.
    """

    def __init__(self, deadlines: DeadlinesConfig, folder: Path):
        self.deadlines, self.folder = deadlines, folder
        self.known: dict[str, Process] = {}
        """By actor id, since an error may come from a process that another one asked."""

    def __call__(
        self, asked: Sequence[Asked], limit: Limit, *, unless: Callable[[], bool] | None = None
    ) -> list[Any]:
        """Results in order; of one that stays where it is, the reference. With `unless` only until
        that is so; what is there by then is a result all the same.

        Processes that belong to a failed or late call and have not answered are killed: their
        group is stuck, and whoever uses it next starts a new one.

        Raises:
            ProcessLostError: the first process that died.
            DeadlineError: not all were done in time; names those that were not.
            NotWantedError: they were not all there when `unless` came true.
        """
        begun = time.monotonic()
        seconds = self.deadlines.seconds(limit)
        self.known |= {each.process.handle._actor_id.hex(): each.process for each in asked}
        pending = {each.reference: each for each in asked}
        results: dict[Any, Any] = {}
        while pending:
            left = None if seconds is None else max(0.0, begun + seconds - time.monotonic())
            look = left if unless is None else min(LOOK, LOOK if left is None else left)
            done, _ = ray.wait(list(pending), timeout=look, fetch_local=False)
            if not done:
                if unless is not None and unless():
                    raise NotWantedError
                if look == left:
                    raise self._late([*pending.values()], limit)
            for reference in done:
                each = pending.pop(reference)
                try:
                    results[reference] = self._result(each)
                except RayError as error:
                    self._end_stuck([*pending.values()])
                    self._raise_lost(error, each)
                    raise
        return [results[each.reference] for each in asked]

    def answered(self, asked: Sequence[Asked]) -> bool:
        """Whether all these calls have their results, or errors; waits for none."""
        references = [each.reference for each in asked]
        if not references:
            return True
        done, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        return len(done) == len(references)

    def _result(self, each: Asked) -> Any:
        if not each.stays:
            return ray.get(each.reference)
        # It may stand for an error; of a process that died, this tells without moving the result.
        ping = each.process.handle.__ray_call__.remote(alive)
        try:
            ray.get(ping, timeout=self.deadlines.seconds("answer"))
        except GetTimeoutError:
            raise self._late([each], "answer") from None
        return each.reference

    def _late(self, pending: list[Asked], limit: Limit) -> DeadlineError:
        key = f"deadlines.{limit}={getattr(self.deadlines, limit):g}"
        calls = ", ".join(sorted({each.call for each in pending}))
        processes = list(dict.fromkeys(each.process for each in pending))
        file, looks = write_stacks(self.folder, f"no answer to {calls} within {key} s", processes)
        stuck = "; ".join(
            f"{process.role} (rank {process.rank}, "
            f"{f'node {place.node}' if (place := process.place()) else 'no node'}) is {look.state},"
            f" last finished: {look.last}"
            for process, look in zip(processes, looks, strict=True)
        )
        for process in processes:
            process.kill()
        return DeadlineError(
            f"no answer to {calls} within {key} s: {stuck}. Stacks: {file}. Raise "
            f"deadlines.{limit} if the work needs longer"
        )

    def _end_stuck(self, pending: list[Asked]) -> None:
        """Ranks that wait for one which failed wait for ever."""
        if not pending:
            return
        references = [each.reference for each in pending]
        _, stuck = ray.wait(
            references, num_returns=len(references), timeout=GRACE, fetch_local=False
        )
        for each in pending:
            if each.reference in stuck:
                each.process.kill()

    def _raise_lost(self, error: RayError, each: Asked) -> None:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, ObjectLostError):  # what it was given or made went with a node
            each.process.lost = True
            raise ProcessLostError(each.process, each.call) from error
        if isinstance(cause, RayActorError):
            if cause._actor_init_failed:
                return  # an error of ours, not a death
            lost = self.known.get(cause.actor_id or "", each.process)
            if cause.actor_id in (None, lost.handle._actor_id.hex()):  # not replaced since
                lost.lost = True
            raise ProcessLostError(lost, each.call) from error


def alive(_actor: Any) -> None:
    """What a process is asked to see whether it is there."""
