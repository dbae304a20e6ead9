"""One method being run: what it needs, and what it has produced."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config import RunConfig
from cluster.ledger import Ledger
from cluster.process import write_whole
from cluster.session import Clock
from trainers.comparison import MethodResult
from trainers.ledger import PHASES
from trainers.method import Method

if TYPE_CHECKING:
    from cluster.ahead import Ahead


@dataclass(slots=True)
class Arm:
    """One method being run: what it needs and what it has produced."""

    name: str
    method: Method
    config: RunConfig
    model_dir: str
    critic_dir: str
    folder: Path
    image_root: str
    clock: Clock = field(default_factory=Clock)
    result: MethodResult = field(default_factory=MethodResult)
    ledger: Ledger | None = None
    round: int = 0
    version: int = 0
    """Of the weights that the rollout engine was given last; 0: those of its folder."""
    judge_dirs: tuple[str, ...] = ()
    """Model folders of the judge."""
    ahead: Ahead | None = None
    """Answers to the next round's prompts, where they are asked for early."""

    def _announce(self, phase: str) -> None:
        """`phase.json`: what the run does now, for whoever looks at it from outside."""
        if self.folder.is_dir():
            now = {"arm": self.name, "round": self.round, "phase": phase, "since": time.time()}
            write_whole(self.folder / "phase.json", json.dumps(now) + "\n")

    @contextmanager
    def phase(self, name: str, *, in_ledger: bool = True) -> Iterator[None]:
        """Time a phase; one of `trainers.ledger.PHASES` is entered in the memory ledger, too. Not
        `in_ledger` is what goes on later in the round: a phase has one entry a round.
        """
        self._announce(name)
        with self.clock.phase(name):
            yield
        if self.ledger is not None and in_ledger and name in PHASES:
            with self.clock.phase("ledger"):
                self.ledger.end_phase(self.round, name)

    def stopped(self, reason: str) -> None:
        """The run cannot go on: keep why, and what the ledger has up to here. What a process is
        still busy with has nobody who needs it.
        """
        self.result.failure = reason
        if self.ledger is not None:
            self.result.memory = self.ledger.summary(self.result.memory, wait=False)
