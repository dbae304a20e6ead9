"""Memory of a copy that leaves goes back to the device, not to its process's allocator alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors import giving_back
from actors.parking import Parking
from actors.reference import ReferenceActor
from actors.reward import JudgeActor
from actors.train import TrainActor
from cluster import residency

GIB = 2**30


@pytest.fixture
def card(monkeypatch):
    """An allocator that keeps 5 GiB, of which 3 are unused; what is called, in order."""
    calls: list[str] = []
    kept = [5 * GIB]

    def empty() -> None:
        calls.append("empty_cache")
        kept[0] = 2 * GIB

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: kept[0])
    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    monkeypatch.setattr(giving_back.gc, "collect", lambda: calls.append("collect"))
    return calls


def test_a_parked_copys_memory_leaves_its_process(card, monkeypatch):
    tensor = torch.ones(3)
    empty = torch.cuda.empty_cache

    def once_it_is_away() -> None:
        assert tensor.untyped_storage().nbytes() == 0
        empty()

    monkeypatch.setattr(torch.cuda, "empty_cache", once_it_is_away)
    Parking().park([tensor])
    assert card == ["empty_cache"]


def test_an_unloaded_copys_cycles_are_freed_first(card):
    TrainActor().unload()
    assert card == ["collect", "empty_cache"]


def test_references_and_judges_give_back_too(card):
    ReferenceActor().unload()
    assert card == ["empty_cache"]
    actor = JudgeActor()
    card.clear()
    made: Any = SimpleNamespace(name="made")

    def make() -> Any:
        assert card == ["collect", "empty_cache"]  # the one before is gone by now
        return made

    actor.load(make)
    assert actor.give_back() == 0  # the fake has no more to give


def test_what_goes_back_is_counted(card):
    assert TrainActor().give_back() == 3 * GIB
    assert card == ["empty_cache"]


def test_a_process_without_a_gpu_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: pytest.fail("called"))
    assert giving_back.give_back() == 0


@pytest.mark.parametrize(
    ("on_gpu", "shares", "sliced", "calls"),
    [
        (True, True, False, ["work", "give_back"]),  # an engine may wake next
        (True, True, True, ["wake", "work", "park"]),  # parking gives back by itself
        (True, False, False, ["work"]),
        (False, True, False, ["work"]),
    ],
)
def test_room_for_activations_is_given_back_after_work(on_gpu, shares, sliced, calls):
    seen: list[str] = []
    session: Any = SimpleNamespace(plan=SimpleNamespace(on_gpu=on_gpu), has=lambda role: True)
    session.shares = lambda role: shares
    for name in ("park", "wake", "give_back"):
        setattr(session, name, lambda role, name=name: seen.append(name) or 0)
    train = SimpleNamespace(time_slice=sliced, reference="own_copy")
    memory = SimpleNamespace(moved_bytes=0, moving_seconds=0.0)
    arm: Any = SimpleNamespace(
        config=SimpleNamespace(train=train), result=SimpleNamespace(memory=memory)
    )
    with residency.at_work(session, arm, "policy"):
        seen.append("work")
    assert seen == calls


def test_a_process_that_was_lost_at_work_is_not_asked():
    session: Any = SimpleNamespace(plan=SimpleNamespace(on_gpu=True), has=lambda role: True)
    session.shares = lambda role: True
    session.give_back = lambda role: pytest.fail("asked")
    train = SimpleNamespace(time_slice=False, reference="own_copy")
    arm: Any = SimpleNamespace(config=SimpleNamespace(train=train))
    with pytest.raises(RuntimeError, match="lost"), residency.at_work(session, arm, "policy"):
        raise RuntimeError("lost")
