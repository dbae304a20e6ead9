"""The ranks of one trained copy: a call goes to all of them (SPMD)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import numpy as np
import ray

from cluster.deadlines import Limit
from cluster.process import Asked, Process
from cluster.wait import Wait
from trainers.batch import Row


class TrainGroup:
    """The ranks of one trained copy; a call goes to all of them.

    With `tenant` it is the second copy in the processes of another one.
    """

    def __init__(self, processes: Sequence[Process], wait: Wait, *, tenant: bool = False):
        self.processes, self.wait, self.is_tenant = list(processes), wait, tenant

    @property
    def actors(self) -> list[Any]:
        """The ranks' Ray handles."""
        return [process.handle for process in self.processes]

    @property
    def lost(self) -> bool:
        """Whether a rank died; the others are of no use then."""
        return any(process.lost for process in self.processes)

    def send(self, name: str, *args: Any, **kwargs: Any) -> list[Asked]:
        """Ask every rank; nothing waits."""
        return [self._send(process, name, *args, **kwargs) for process in self.processes]

    def call(self, name: str, *args: Any, **kwargs: Any) -> list[Any]:
        """References to every rank's result; the first is rank 0's."""
        return [asked.reference for asked in self.send(name, *args, **kwargs)]

    def ask(self, name: str, *args: Any, limit: Limit, **kwargs: Any) -> list[Any]:
        """Every rank's result; the first is rank 0's."""
        return self.wait(self.send(name, *args, **kwargs), limit)

    def _send(self, process: Process, name: str, *args: Any, **kwargs: Any) -> Asked:
        if self.is_tenant:
            return replace(process.send("tenant", name, *args, **kwargs), call=name)
        return process.send(name, *args, **kwargs)

    def connect(self) -> None:
        """Join the ranks to one DeepSpeed group, rank 0's host being the rendezvous."""
        host, port = self.wait([self._send(self.processes[0], "address")], "load")[0]
        self.ask("connect", host, port, limit="load")

    def end(self) -> None:
        """End the ranks' processes."""
        for process in self.processes:
            ray.kill(process.handle)

    def score_rows(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Values of the rows' target tokens."""
        return self.finish_rows(self.begin_rows("score_rows", rows), len(rows))

    def greedy_rows(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """The policy's likeliest tokens at the rows' target places."""
        return self.finish_rows(self.begin_rows("greedy_rows", rows), len(rows))

    def begin_rows(self, name: str, rows: Sequence[Row], **kwargs: Any) -> list[Asked]:
        """Ask each rank for its rows, and wait for nothing. Rows are dealt to ranks in turn; equal
        numbers, since ZeRO-3 ranks move in step.
        """
        world = len(self.processes)
        padded = [*rows, *islice(cycle(rows), -len(rows) % world)]
        return [
            self._send(process, name, padded[rank::world], **kwargs)
            for rank, process in enumerate(self.processes)
        ]

    def finish_rows(self, asked: Sequence[Asked], number: int) -> list[np.ndarray]:
        """What `begin_rows` asked for, in the order of its `number` rows."""
        parts = self.wait(asked, "logprobs")
        return [parts[index % len(asked)][index // len(asked)] for index in range(number)]
