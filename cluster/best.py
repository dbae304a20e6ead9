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

HIGHER_IS_BETTER = {"chair_i": False, "chair_s": False, "recall": True}


class BestRound:
    """The best round's model, in `best/round_000003` of the arm's folder while rounds pass.

    A folder appears under its name when it is complete, and only then the older one goes, so that
    a run which is killed leaves the best model of its finished rounds.
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
        unfinished, older = self.folder / ".unfinished", self.path
        shutil.rmtree(unfinished, ignore_errors=True)
        save_policy(session, arm, unfinished)
        self.path = self.folder / f"round_{number:06d}"
        unfinished.rename(self.path)
        if older is not None:
            shutil.rmtree(older)
        self.value, arm.result.best_round = value, number

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
