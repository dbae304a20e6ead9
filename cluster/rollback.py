"""A trained copy that dies takes the run back to its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from cluster.arm import Arm
from cluster.checkpoints import set_result
from cluster.failures import RunStoppedError
from cluster.session import Session
from cluster.wait import ProcessLostError
from trainers import checkpoint
from trainers.random_state import random_state, set_random_state


def with_rollback(session: Session, arm: Arm, run: Callable[[], None]) -> None:
    """Run; when a trainer dies, run again, which goes on from the latest checkpoint.

    Optimiser states are nowhere but in the trainer, so it cannot be replaced alone. Before the
    first checkpoint the run starts anew: it has finished no round.

    Args:
        run: loads the copies anew, reads the latest checkpoint, and does the rounds that are left.

    Raises:
        RunStoppedError: checkpoints are off, or a trainer died more often than
            `deadlines.restarts`.
    """
    at_start = arm.method.state(), random_state(), arm.result.model_copy(deep=True)
    root = arm.folder / "checkpoints"
    for left in range(arm.config.deadlines.restarts, -1, -1):
        try:
            run()
        except ProcessLostError as lost:
            if lost.process.role not in arm.method.trained:
                raise
            if not arm.config.checkpoint.every:
                raise RunStoppedError(
                    f"{lost}. There is no checkpoint to go back to; set checkpoint.every=1"
                ) from None
            if not left:
                raise
            rounds = checkpoint.rounds(root)
            back = f"the checkpoint of round {rounds[-1]}" if rounds else "the start"
            session.console.warn(f"{lost}; {arm.name} goes back to {back}")
            session.restarts.append(lost.process.role)
            arm.ledger, arm.round = None, 0
            if not rounds:
                method, generators, result = at_start
                arm.method.load_state(method)
                set_random_state(generators)
                set_result(arm.result, result.model_copy(deep=True))
        else:
            return
