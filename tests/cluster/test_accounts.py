"""Rollouts in = judged + dropped, each once."""

from __future__ import annotations

import pytest

from cluster.accounts import settle
from cluster.failures import RunStoppedError
from trainers.comparison import RolloutAccount


def test_rounds_add_up(make_scored):
    account = RolloutAccount()
    # Two prompts of two rollouts; one prompt did not fit, one answer was not judged.
    judged = [make_scored("r1/a/0", "a", 1.0), make_scored("r1/a/1", "a", None)]
    settle(account, 4, judged, 2)
    assert account == RolloutAccount(asked=4, judged=1, dropped=3)
    settle(account, 1, [make_scored("r2/a/0", "a", 1.0)], 0)
    assert account == RolloutAccount(asked=5, judged=2, dropped=3)


def test_what_is_missing_stops_the_run(make_scored):
    account = RolloutAccount()
    with pytest.raises(RunStoppedError, match="3 were asked for, 1 judged and 0 dropped"):
        settle(account, 3, [make_scored("r1/a/0", "a", 1.0)], 0)
    assert account.lost == 2


def test_what_is_there_twice_stops_the_run(make_scored):
    twice = [make_scored("r1/a/0", "a", 1.0)] * 2
    with pytest.raises(RunStoppedError, match="r1/a/0 is there twice"):
        settle(RolloutAccount(), 2, twice, 0)
