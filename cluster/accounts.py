"""The ledger of rollouts: what went in was judged or dropped, each exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cluster.failures import RunStoppedError
from trainers.comparison import RolloutAccount
from trainers.data.records import ScoredRollout


def settle(
    account: RolloutAccount, asked: int, judged: Sequence[ScoredRollout], dropped: int
) -> None:
    """Enter one round's rollouts, by id.

    Raises:
        RunStoppedError: one is there twice, or asked is not judged + dropped.
    """
    counts = Counter(item.rollout.id for item in judged)
    doubled = [id for id, number in counts.items() if number > 1]
    failed = sum(item.failure is not None for item in judged)
    account.asked += asked
    account.judged += len(counts) - failed
    account.dropped += dropped + failed
    account.doubled += len(doubled)
    account.lost = account.asked - account.judged - account.dropped
    if doubled or account.lost:
        raise RunStoppedError(
            f"rollouts: {account.asked} were asked for, {account.judged} judged and "
            f"{account.dropped} dropped" + (f"; {doubled[0]} is there twice" if doubled else "")
        )
