"""Plans made real by Ray, with GPUs that it only pretends to have: who sees which."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
SCRIPT = Path(__file__).with_name("pretended_gpus.py")


def run(what: str, log: Path, **variables: str) -> dict[str, Any]:
    ours = ("RAY_ADDRESS", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), what, str(log)],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=log.parent,
        # A cluster made of two local nodes has no token file to share.
        env={**environment, "RAY_AUTH_MODE": "disabled", **variables},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def gpus(found: dict[str, Any], role: str) -> list[tuple[str, ...]]:
    return [tuple(devices.split(",")) for _, devices, _ in found[role]]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict[str, Any]:
    log = tmp_path_factory.mktemp("one") / "run.log"
    return run("one", log, PYTHONPATH=str(SCRIPT.parents[2]))


def test_processes_see_their_own_gpus(one):
    # Four GPUs' worth of roles on three: rollout and judge, the lightest, share one.
    policy, rollout = gpus(one["seen"], "policy"), gpus(one["seen"], "rollout")
    assert {*policy, *rollout} == {("0",), ("1",), ("2",)}
    assert rollout == gpus(one["seen"], "judge")


def test_another_session_gets_them_all_again(one):
    assert one["again"] == 3


def test_the_map_is_in_the_log(one):
    assert "placement: policy   rank 0-1 -> " in one["log"]
    assert "(shares with judge)" in one["log"]


def test_a_wait_ends_and_says_what_is_there(one):
    assert "asked for 2 GPUs" in one["held"] and "did not get them in 1 s" in one["held"]
    assert "there are 3 GPUs" in one["held"] and "(0 free)" in one["held"]
    assert "placement.wait_seconds" in one["held"]
    assert "asked for GPUs: policy 4; there are 3 GPUs" in one["too_many"]


@pytest.mark.slow
def test_two_nodes_are_attached_to_by_address(tmp_path):
    two = run("two", tmp_path / "run.log")
    policy = [(node, devices) for node, devices, _ in two["seen"]["policy"]]
    assert len(set(policy)) == 6 and len({node for node, _ in policy}) == 2
    engines = two["seen"]["rollout"]
    assert all(len(devices.split(",")) == 2 for _, devices, _ in engines)
    for node, devices, _ in engines:  # colocated with trainers, whole on their node
        assert {(node, gpu) for gpu in devices.split(",")} <= set(policy)
    (judge,) = two["seen"]["judge"]
    assert (judge[0], judge[1]) not in policy
    for role, rank, index, number in two["seats"]:  # the printed map is what was done
        node, devices, _ = two["seen"][role][rank]
        assert (node, len(devices.split(","))) == (two["nodes"][index], number)
    # Our packages came with the job: another machine would not have this checkout.
    sources = {source for rows in two["seen"].values() for _, _, source in rows}
    assert all("py_modules" in source for source in sources), sources


def test_a_role_whose_node_died_joins_one_that_lives(shared_session):
    import ray

    from cluster.placement import Node, Plan, Seat
    from cluster.placement_ray import Reservation

    here = ray.get_runtime_context().get_node_id()
    plan = Plan(
        nodes=(Node("gone", 1, id="0" * 56), Node("here", 1, id=here)),
        seats=(Seat("judge", 0, 0, (0,)), Seat("policy", 0, 1, (0,))),
        groups=(("judge",), ("policy",)),
    )
    reservation = Reservation(plan, ids={1: ("7",)})
    living = reservation._living(plan.seats[0])
    assert living == reservation._living(plan.seats[1]) == plan.seats[1]
