"""SAPO: the buffer forgets the oldest, draws what was used less, and stays in the driver."""

from __future__ import annotations

import pickle
import random

import pytest

from trainers.batch import Row
from trainers.config import SAPOConfig
from trainers.roles import copies_in_training
from trainers.sapo import SAPO, PairReplay


def groups(*names: str):
    return [(Row(id=name, prompt=(), images=(), response_ids=(1,)),) for name in names]


def names(drawn) -> list[str]:
    return [group[0].id for group in drawn]


def test_first_in_first_out():
    replay = PairReplay(3)
    replay.add(groups("a", "b"))
    replay.add(groups("c", "d"))
    assert len(replay) == 3
    assert sorted(names(replay.draw(10, random.Random(0)))) == ["b", "c", "d"]
    replay.add(groups("e", "f", "g", "h"))
    assert sorted(names(replay.draw(3, random.Random(0)))) == ["f", "g", "h"]


def test_a_group_is_drawn_once_at_a_time():
    replay = PairReplay(10)
    replay.add(groups(*"abcdef"))
    for seed in range(20):
        drawn = names(replay.draw(4, random.Random(seed)))
        assert len(set(drawn)) == 4


def test_weights_are_one_over_uses_plus_one():
    # "used" was drawn three times: weights 1/4 and 1, so it comes first in 1 of 5 draws.
    rng = random.Random(0)
    first = 0
    for _ in range(4000):
        replay = PairReplay(2)
        replay.add(groups("used", "new"))
        replay._uses = [3, 0]
        first += names(replay.draw(1, rng)) == ["used"]
    assert first / 4000 == pytest.approx(0.2, abs=0.02)


def test_uses_are_counted():
    replay = PairReplay(10)
    replay.add(groups("a", "b", "c"))
    for _ in range(5):
        replay.draw(2, random.Random(0))
    assert sum(replay._uses) == 10


def test_select_draws_from_all_rounds(samples, make_scored):
    by_id = {sample.id: sample for sample in samples}
    method = SAPO(SAPOConfig(replay_draws=3))
    rng = random.Random(0)
    for number, sample in enumerate(samples[:2]):
        scored = [
            make_scored(f"{sample.id}/right", sample.id, 1.0),
            make_scored(f"{sample.id}/segment", sample.id, 0.0),
        ]
        selection = method.select(scored, by_id, rng)
        assert selection.stats["replay/size"] == number + 1
        assert selection.stats["replay/drawn"] == len(selection.groups) == min(3, number + 1)
        for row in (row for group in selection.groups for row in group):
            assert not row.tokens  # those of the round before are of another reference
            row.tokens["ref_logprobs"] = row.response_ids
    chosen, rejected = selection.groups[0]
    assert chosen.id.endswith("/right") and rejected.id.endswith("/segment")


def test_the_buffer_is_not_sent_to_the_copies(samples, make_scored):
    method = SAPO(SAPOConfig(beta=0.2, ema_rate=0.5))
    method.replay.add(groups("a"))
    sent = pickle.loads(pickle.dumps(method))
    assert not hasattr(sent, "replay")
    assert sent.config.beta == 0.2 and sent.refresh_rate == 0.5


def test_the_moving_average_is_the_reference():
    method = SAPO(SAPOConfig())
    assert copies_in_training(method.copies) == ("policy", "reference")
    assert method.refreshed == ("reference",) and method.refresh_rate == 0.5
