"""`eval.keep_best`: of all rounds' models the one that is best by a held-out metric."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from actors.weight_sync import make_buckets
from cluster.arm import Arm
from cluster.residency import at_work
from cluster.session import Session
from cluster.sync import give_weights
from trainers.data.errors import UserError

HIGHER_IS_BETTER = {"chair_i": False, "chair_s": False, "recall": True}


class BestRound:
    """The best round's model, in `best/round_000003` of the arm's folder while rounds pass.

    A folder appears under its name when it is complete, and the older one goes after the next
    checkpoint, so that a run which is killed leaves the best model of its finished rounds.
    """

    def __init__(self, arm: Arm, metric: str):
        self.metric = metric
        self.value: float | None = None
        self.folder = arm.folder / "best"
        self.path: Path | None = None

    def is_better(self, value: float | None) -> bool:
        """Whether `value` beats the best so far; of equal ones the earlier stays, nan loses."""
        if value is None or math.isnan(value):
            return False
        if self.value is None:
            return True
        return value > self.value if HIGHER_IS_BETTER[self.metric] else value < self.value

    def offer(self, session: Session, arm: Arm, number: int, metrics: Mapping[str, float]) -> None:
        """Keep the policy as it is after round `number`, if the round's metrics are the best."""
        value = metrics.get(self.metric)
        if not self.is_better(value):
            return
        unfinished = self.folder / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        save_policy(session, arm, unfinished)
        self.path = self._folder_of(number)
        shutil.rmtree(self.path, ignore_errors=True)  # of a run that was killed
        unfinished.rename(self.path)
        self.value, arm.result.best_round = value, number

    def keep_only(self, rounds: set[int]) -> None:
        """Remove the models of all rounds but the best and `rounds`, which a run may go on from."""
        kept = {self._folder_of(number) for number in rounds} | {self.path}
        for path in self.folder.glob("round_*"):
            if path not in kept:
                shutil.rmtree(path)

    def go_on(self, number: int, value: float) -> None:
        """As if round `number` had been offered; its model is still there.

        Raises:
            UserError: it is not.
        """
        self.path, self.value = self._folder_of(number), value
        final = self.folder.parent / "final"
        if not self.path.is_dir() and final.is_dir():  # the run had ended, and made it that
            self.folder.mkdir(exist_ok=True)
            final.rename(self.path)
        if not self.path.is_dir():
            raise UserError(f"{self.path}: the best round's model is missing; restore it")

    def _folder_of(self, number: int) -> Path:
        return self.folder / f"round_{number:06d}"

    def restore(self, session: Session, arm: Arm, target: Path) -> None:
        """Make the kept model `target`, and give its weights to the rollout engine."""
        from safetensors.torch import load_file

        assert self.path is not None
        self.path.rename(target)
        shutil.rmtree(self.folder)
        size = arm.config.train.bucket_mib * 2**20

        def kept() -> Any:
            tensors = load_file(target / "model.safetensors")
            return ray.put(make_buckets(tensors.items(), size))

        give_weights(session, arm, kept, (arm.result.best_round or 0) + 1)


def save_policy(session: Session, arm: Arm, folder: Path) -> None:
    """Write the policy as a Hugging Face folder."""
    with at_work(session, arm, "policy"):
        session.trainer("policy").ask("save", str(folder), limit="save")
