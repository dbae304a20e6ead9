"""One method being run: what it needs, and what it has produced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.config import RunConfig
from cluster.ledger import Ledger
from cluster.session import Clock
from trainers.comparison import MethodResult
from trainers.ledger import PHASES
from trainers.method import Method


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
    judge_dirs: tuple[str, ...] = ()
    """Model folders of the judge."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; one of `trainers.ledger.PHASES` is entered in the memory ledger, too."""
        with self.clock.phase(name):
            yield
        if self.ledger is not None and name in PHASES:
            with self.clock.phase("ledger"):
                self.ledger.end_phase(self.round, name)
