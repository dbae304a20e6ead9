"""Waiting ends: with results, with the first error, with who died, or with who is late."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import ray

from cluster.deadlines import DeadlinesConfig
from cluster.group import TrainGroup
from cluster.process import Process
from cluster.stacks import state_of
from cluster.wait import DeadlineError, ProcessLostError, Wait
from tests.cluster.light import LightRank

pytestmark = pytest.mark.ray


@pytest.fixture
def wait(shared_session, tmp_path):
    return Wait(DeadlinesConfig(train=1.0), tmp_path)


@pytest.fixture
def two(shared_session, wait):
    def start(rank: int):
        return ray.remote(LightRank).options(num_cpus=0).remote(rank)

    made = [Process("policy", rank, lambda rank=rank: start(rank), "test") for rank in range(2)]
    group = TrainGroup(made, wait)
    assert group.ask("add", 1, limit="load") == [1, 2]
    yield group
    group.end()


def test_late_processes_are_named_with_their_stacks_and_killed(two, wait, tmp_path):
    calls = [two.processes[0].send("add", 1), two.processes[1].send("wait_for_nothing")]
    ray.wait([calls[0].reference])  # answered, however slow the machine is
    with pytest.raises(DeadlineError) as caught:
        wait(calls, "train")
    line = str(caught.value)
    assert "\n" not in line
    assert "no answer to wait_for_nothing within deadlines.train=1 s: policy (rank 1, node " in line
    assert "is waiting, last finished: started" in line and "Raise deadlines.train" in line
    (file,) = (tmp_path / "stacks").iterdir()
    assert str(file) in line
    text = file.read_text()
    assert "policy rank 1, pid" in text and "policy rank 0" not in text
    assert "in wait_for_nothing" in text
    assert two.lost and not two.processes[0].lost
    pid = two.processes[1].place().pid
    ended = time.monotonic() + 60
    while state_of(pid) != "dead" and time.monotonic() < ended:
        time.sleep(0.05)  # a killed process needs a moment to be gone
    assert state_of(pid) == "dead"


def test_an_error_of_one_rank_does_not_wait_for_the_others(two, wait, monkeypatch):
    monkeypatch.setattr("cluster.wait.GRACE", 0.2)
    with pytest.raises(ValueError, match="no such row"):
        two.ask("fail_on", 0, limit="load")
    assert two.processes[1].lost  # it would wait in a collective for ever


def test_who_dies_is_named_and_can_be_replaced(two, wait):
    process = two.processes[1]
    pid = process.place().pid
    with pytest.raises(ProcessLostError, match=rf"policy \(rank 1, pid {pid} on .*\) ended") as e:
        wait([process.send("die")], "load")
    assert e.value.process is process and process.lost
    process.replace()
    assert wait([process.send("add", 1)], "load") == [2]
    assert process.place().pid != pid and process.name == "policy/1+1"


def test_a_result_that_stays_is_a_reference(two, wait):
    asked = replace(two.processes[1].send("add", 5), stays=True)
    (reference,) = wait([asked], "load")
    assert ray.get(reference) == 6
    with pytest.raises(ProcessLostError):
        wait([replace(two.processes[0].send("die"), stays=True)], "load")


def test_a_tenants_call_has_its_own_name(two, wait):
    tenant = TrainGroup(two.processes, wait, tenant=True)
    (asked, _) = tenant.send("add", 1)
    assert asked.call == "add" and ray.get(asked.reference) == 100


def test_no_limit_is_none():
    assert DeadlinesConfig(train=0).seconds("train") is None
    assert DeadlinesConfig().seconds("answer") == 300
