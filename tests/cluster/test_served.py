"""Calls to a role's processes that are under way together: in order, and each done once."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace

import pytest
import ray

from cluster.ahead import Ahead, drop_obsolete, settle_ahead
from cluster.deadlines import DeadlinesConfig
from cluster.preemption import Preempted, finishing, preemptible
from cluster.process import Process
from cluster.recipe import Call
from cluster.served import ServedGroup
from cluster.session import Clock
from cluster.wait import NotWantedError, ProcessLostError, Wait
from tests.cluster.light import LightEngine

pytestmark = pytest.mark.ray


@pytest.fixture
def group(shared_session, tmp_path):
    def start(rank: int):
        return ray.remote(LightEngine).options(num_cpus=0).remote(rank)

    def make(number: int) -> ServedGroup:
        processes = [
            Process("rollout", rank, lambda rank=rank: start(rank), "served")
            for rank in range(number)
        ]
        wait = Wait(DeadlinesConfig(restarts=1), tmp_path)
        served = ServedGroup(processes, wait, lambda process: True, told.append, lambda text: None)
        made.append(served)
        return served

    told: list[Process] = []
    made: list[ServedGroup] = []
    make.told = told
    yield make
    for served in made:
        for process in served.processes:
            ray.kill(process.handle)


def test_slices_come_back_in_order_whatever_is_asked_between(group):
    served = group(2)
    begun = [
        served.begin("generate", ["a", "b", "c"], seed=1),
        served.begin("generate", ["d"], seed=2),
    ]
    assert served.ask("update_weights", 8, limit="sync") == 8  # queued behind both
    after = served.begin("generate", ["e"], seed=3)
    found = [served.finish(each, limit="generate") for each in (*begun, after)]
    assert found == [(["a/0", "b/0", "c/0"], []), (["d/0"], []), (["e/8"], [])]


def test_a_death_among_slices_loses_none_and_doubles_none(group):
    """The second slice kills the engine; the third, which was queued, dies with it. A new engine
    with the recipe's weights does both again.
    """
    served = group(1)
    served.ask("load", "spec", limit="load")
    served.recipe.weights = lambda: Call("update_weights", (8,))
    begun = [served.begin("generate", part, seed=1) for part in (["a"], ["die"], ["c"], ["d"])]
    found = [served.finish(each, limit="generate")[0] for each in begun]
    # What was said before may have been on its way when the engine died: then it is said again.
    assert found[0] in (["a/0"], ["a/8"]) and found[1:] == [["die/8"], ["c/8"], ["d/8"]]
    assert len(group.told) == 1 and served.processes[0].number == 1


@pytest.mark.slow
def test_a_slice_that_always_kills_stops(group):
    served = group(1)
    begun = served.begin("generate", ["die"], seed=1)
    with pytest.raises(ProcessLostError):
        served.finish(begun, limit="generate")


def test_what_nobody_takes_any_more_is_waited_for_by_its_own_limit(group, tmp_path):
    """Behind obsolete answers a weight sync would be late, and its engine killed."""
    served, gate = group(2), tmp_path / "gate"
    session = SimpleNamespace(has=lambda role: role == "rollout", served=lambda role: served)
    for _ in range(2):
        served.begin("hold", str(gate))
    for process in served.processes:
        assert process.place(60)  # it has come up
    served.wait.deadlines = DeadlinesConfig(sync=2)
    threading.Timer(4.0, gate.touch).start()
    drop_obsolete(session)
    assert gate.exists()
    assert served.ask("update_weights", 3, limit="sync") == 3
    assert not any(process.lost for process in served.processes)
    drop_obsolete(session)  # nothing is left


@pytest.mark.slow
def test_obsolete_calls_that_fail_are_nobodys_errors(group):
    served = group(1)
    served.begin("hold", 3)  # no name of a file
    begun = served.begin("generate", ["die"], seed=1)
    served.begin("hold", 3)
    served.drop("generate")
    assert served.processes[0].lost
    assert served.ask("generate", ["a"], seed=1, limit="generate") == (["a/0"], [])
    with pytest.raises(ProcessLostError):
        served.finish(begun, limit="generate")


def test_waiting_ends_when_the_result_is_not_wanted_unless_it_is_there(group):
    served = group(1)
    there, never = served.begin("generate", ["a"], seed=1), served.begin("hold", "")
    ray.wait([there.asked[0][2].reference])
    assert served.finish(there, limit="generate", unless=lambda: True) == (["a/0"], [])
    with pytest.raises(NotWantedError):
        served.finish(never, limit="generate", unless=lambda: True)


def settled(served: ServedGroup, ahead: Ahead, signalled: bool) -> list[bool]:
    """What `settle_ahead` says, with SIGTERM before it or without."""
    session = SimpleNamespace(served=lambda role: served)
    clock = Clock()
    arm = SimpleNamespace(ahead=ahead, phase=lambda name, in_ledger: clock.phase(name))
    found = []
    try:
        with preemptible("x"), finishing():
            if signalled:
                os.kill(os.getpid(), signal.SIGTERM)
            found.append(settle_ahead(session, arm))
            found.append(arm.ahead is ahead and not ahead.begun)
    except Preempted:
        assert signalled
    return found


def test_the_end_of_a_run_gives_up_answers_that_are_not_there(group):
    served = group(1)
    there = served.begin("generate", ["a"], seed=1)
    ray.wait([there.asked[0][2].reference])
    for signalled in (False, True):  # what has come is kept
        assert settled(served, Ahead(2, [], begun=[there]), signalled) == [True, True]
    never = served.begin("hold", "")
    assert settled(served, Ahead(2, [], begun=[never]), True) == [False, False]
    assert served.processes[0].lost  # nobody waits for it, not the ledger either
