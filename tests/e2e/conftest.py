"""The stack that end-to-end tests run on: one session for all, and recipes of a few steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.base_model import JudgeRecipe, WorldRecipe
from trainers.drawn_vision import VisionPhase


def tiny_recipe() -> WorldRecipe:
    """A few steps of everything."""
    base = WorldRecipe().base
    small = {"batch_size": 6, "critique_rows": 2}
    return WorldRecipe(
        vision=VisionPhase(steps=8),
        base=replace(
            base,
            honest=replace(base.honest, steps=12, **small),
            biased=replace(base.biased, steps=3, **small),
        ),
        judge=JudgeRecipe(steps=6, num_samples=60, num_held_out=16, batch_size=8),
    )


@dataclass
class Stack:
    """What the tests run on: the shared session in place of each run's own."""

    session: Any
    root: Path


@pytest.fixture(scope="module")
def stack(shared_session, tmp_path_factory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("e2e")

    class Borrowed:
        """Stands for `Session` in a run; what it starts stays for the next test."""

        def __init__(self, *, console: Any, **options: Any):
            self.console = console

        def __enter__(self) -> Any:
            self.before, shared_session.console = shared_session.console, self.console
            return shared_session

        def __exit__(self, *exception: object) -> None:
            shared_session.console = self.before

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUARTET_CACHE", str(root / "cache"))
        patch.setattr("cluster.compare.Session", Borrowed)
        patch.setattr("cluster.run.Session", Borrowed)
        patch.setattr(WorldRecipe, "quick", classmethod(lambda cls: tiny_recipe()))
        yield Stack(shared_session, root)
