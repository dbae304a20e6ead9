"""Actors without a model. Their processes import this module, so it imports nothing slow."""

from __future__ import annotations

import os
import time
from pathlib import Path


class LightRank:
    """Stands for a trainer's rank."""

    def __init__(self, rank: int = 0):
        self.rank = rank

    def add(self, number: int) -> int:
        return self.rank + number

    def wait_for_nothing(self) -> None:
        time.sleep(1000)

    def fail_on(self, rank: int) -> None:
        if self.rank == rank:
            raise ValueError("no such row")
        time.sleep(1000)

    def die(self) -> None:
        os._exit(1)

    def tenant(self, name: str, *args: int) -> int:
        return 100 * int(getattr(self, name)(*args))


class LightEngine:
    """Answers with its prompts and the version that it holds."""

    def __init__(self, rank: int):
        self.rank, self.version = rank, 0

    def load(self, spec: str) -> None:
        self.version = 0

    def update_weights(self, version: int) -> int:
        self.version = version
        return version

    def generate(self, prompts: list[str], *, seed: int) -> tuple[list[str], list[str]]:
        if "die" in prompts and self.version < 8:
            os._exit(1)
        return [f"{prompt}/{self.version}" for prompt in prompts], []

    def hold(self, gate: str) -> str:
        """Busy until there is a file `gate`; for ever where there is no name for one."""
        while not (gate and Path(gate).exists()):
            time.sleep(0.01)
        return "held"
