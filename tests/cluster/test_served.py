"""Calls to a role's processes that are under way together: in order, and each done once."""

from __future__ import annotations

import os

import pytest
import ray

from cluster.deadlines import DeadlinesConfig
from cluster.process import Process
from cluster.recipe import Call
from cluster.served import ServedGroup
from cluster.wait import ProcessLostError, Wait

pytestmark = pytest.mark.ray


class Light:
    """An engine without a model: answers with its prompts and the version that it holds."""

    def __init__(self, rank: int):
        self.rank, self.version = rank, 0

    def load(self, spec: str) -> None:
        self.version = 0

    def update_weights(self, version: int) -> int:
        self.version = version
        return version

    def generate(self, prompts: list[str], *, seed: int) -> tuple[list[str], list[str]]:
        if "die" in prompts and self.version < 8:
            os._exit(1)
        return [f"{prompt}/{self.version}" for prompt in prompts], []


@pytest.fixture
def group(shared_session, tmp_path):
    def start(rank: int):
        return ray.remote(Light).options(num_cpus=0).remote(rank)

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
    assert found == [["a/0"], ["die/8"], ["c/8"], ["d/8"]]
    assert len(group.told) == 1 and served.processes[0].number == 1


def test_a_slice_that_always_kills_stops(group):
    served = group(1)
    begun = served.begin("generate", ["die"], seed=1)
    with pytest.raises(ProcessLostError):
        served.finish(begun, limit="generate")
