"""Placement by hand and for every small cluster: no GPU twice, groups apart, engines whole."""

from __future__ import annotations

import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.placement import Node, Plan, Request, plan
from cluster.placement_text import describe, lines
from trainers.data.errors import UserError

PPO = ("policy", "critic", "reference", "rollout", "judge")


def nodes_of(number: int, gpus: int) -> list[Node]:
    return [Node(f"n{index}", gpus, id=str(index)) for index in range(number)]


def requests_of(ranks: int, engines: int, each: int) -> list[Request]:
    return [
        Request("policy", ranks),
        Request("critic", ranks),
        Request("reference"),
        Request("rollout", engines, each),
        Request("judge"),
    ]


def devices(found: Plan, *roles: str) -> set[tuple[int, int]]:
    return {(s.node, gpu) for s in found.seats if s.role in roles for gpu in s.gpus}


def check(found: Plan, requests: list[Request], nodes: list[Node]) -> None:
    """What holds of every plan."""
    assert len(found.seats) == sum(request.num_processes for request in requests)
    for request in requests:
        seats = [seat for seat in found.seats if seat.role == request.role]
        assert [seat.rank for seat in seats] == list(range(request.num_processes))
        assert all(len(seat.gpus) == request.gpus_each for seat in seats)
        assert len(devices(found, request.role)) == request.num_gpus  # no GPU twice
    for seat in found.seats:
        assert all(0 <= gpu < nodes[seat.node].gpus for gpu in seat.gpus)
    for one, other in product(found.groups, found.groups):
        if one != other:
            assert not devices(found, *one) & devices(found, *other)
    assert found.num_gpus == sum(
        max(r.num_gpus for r in requests if r.role in group) for group in found.groups
    )


def test_one_gpu_is_shared_by_all():
    found = plan([Request(role) for role in PPO], nodes_of(1, 1))
    assert found.folded and found.groups == (PPO,)
    assert {seat.gpus for seat in found.seats} == {(0,)}
    assert all(found.shares(role) for role in PPO)


def test_eight_gpus_are_enough_for_one_each():
    found = plan([Request(role) for role in PPO], nodes_of(1, 8))
    assert not found.folded and found.num_gpus == 5
    assert not any(found.shares(role) for role in PPO)


def test_of_too_few_gpus_the_lightest_roles_share_one():
    # Loads 8, 8, 1, 4, 3 on four GPUs: reference and judge go together (4), then all fits.
    found = plan([Request(role) for role in PPO], nodes_of(1, 4))
    assert found.groups == (("policy",), ("critic",), ("reference", "judge"), ("rollout",))
    # On three: the group of 4 and rollout, 4, too.
    found = plan([Request(role) for role in PPO], nodes_of(1, 3))
    assert found.groups == (("policy",), ("critic",), ("reference", "rollout", "judge"))
    assert found.shares("judge") and not found.shares("policy")


def test_named_groups_share_and_the_others_do_not():
    colocate = (("policy", "reference"), ("rollout", "judge"))
    found = plan(requests_of(2, 2, 1), nodes_of(1, 8), colocate)
    assert found.num_gpus == 6 and not found.folded
    assert devices(found, "policy") == {(0, 0), (0, 1)}
    assert devices(found, "reference") < devices(found, "policy")
    assert devices(found, "critic").isdisjoint(devices(found, "policy", "rollout"))


def test_single_processes_go_to_the_emptiest_gpus():
    colocate = (("policy", "reference", "judge", "writer"),)
    requests = [Request("policy", 2), *(Request(r) for r in ("reference", "judge", "writer"))]
    seats = {s.role: s.gpus for s in plan(requests, nodes_of(1, 2), colocate).seats[2:]}
    assert seats == {"reference": (0,), "judge": (1,), "writer": (0,)}  # loads 9, 11, then 10


def test_ranks_stay_on_one_node_if_it_has_room():
    nodes = [Node("small", 2), Node("large", 4), Node("larger", 8)]
    found = plan([Request("policy", 4)], nodes)
    assert {seat.node for seat in found.seats} == {1}
    found = plan([Request("policy", 10)], nodes)  # the larger one whole, the rest where it fits
    assert [seat.node for seat in found.seats].count(2) == 8
    assert {seat.node for seat in found.seats} == {0, 2}


def test_an_engine_is_on_one_node():
    nodes = nodes_of(2, 3)
    found = plan([Request("policy", 2), Request("rollout", 2, 2)], nodes)
    for seat in found.seats:
        if seat.role == "rollout":
            assert len(seat.gpus) == 2
    with pytest.raises(UserError, match=r"rollout\.tensor_parallel=4 needs so many on one node"):
        plan([Request("rollout", 1, 4)], nodes)


def test_an_engine_of_two_gpus_shares_them_with_two_ranks():
    found = plan([Request("policy", 4), Request("rollout", 2, 2)], nodes_of(1, 4))
    assert [s.gpus for s in found.seats] == [(0,), (1,), (2,), (3,), (0, 1), (2, 3)]


def test_without_gpus_all_are_on_the_first_node():
    found = plan(requests_of(2, 2, 1), nodes_of(2, 0))
    check_seats = {(seat.node, seat.gpus) for seat in found.seats}
    assert check_seats == {(0, ())} and found.num_gpus == 0 and not found.on_gpu
    assert all(found.shares(role) for role in PPO)
    assert lines(found)[0] == "policy     rank 0-1 -> n0 CPU"


def test_a_role_may_do_without_a_gpu():
    found = plan([Request("policy"), Request("judge", 1, 0)], nodes_of(1, 1))
    assert found.seat("judge").gpus == () and not found.shares("policy")


def test_a_role_that_was_not_asked_for_may_share():
    found = plan([Request("policy")], nodes_of(1, 2))
    assert found.seat("writer") is None and found.shares("writer")


def test_the_error_says_what_was_asked_what_is_there_and_what_to_change():
    nodes = [Node("a", 2, free=1), Node("b", 0)]
    with pytest.raises(UserError) as error:
        plan([Request("policy", 4), Request("rollout")], nodes)
    assert str(error.value) == (
        "placement: asked for GPUs: policy 4, rollout 1; there are 2 GPUs: a 2 (1 free), b 0; "
        "lower placement.gpus (train.num_ranks, rollout.num_engines)"
    )
    with pytest.raises(UserError, match=r"more roles together in placement\.colocate"):
        plan([Request("policy", 2), Request("rollout")], nodes, [["policy"]])


def test_a_large_cluster_is_described_in_short():
    assert describe(nodes_of(64, 8)).endswith("n7 8, 56 more nodes with 448")


def test_the_map_reads_as_it_is():
    found = plan([Request("policy", 2), Request("judge")], nodes_of(1, 2))
    assert found.folded
    assert lines(found, {0: ("4", "7")}) == [
        "policy  rank 0-1 -> n0 GPU 4,7  (shares with judge)",
        "judge   rank 0 -> n0 GPU 4  (shares with policy)",
    ]


PAIRS = (("policy", "reference"), ("rollout", "judge"))


@pytest.mark.parametrize("colocate", [None, (PPO,), PAIRS])
def test_every_cluster_up_to_four_nodes_of_eight(colocate):
    fitted = refused = 0
    for number, gpus in product(range(1, 5), range(1, 9)):
        nodes, most = nodes_of(number, gpus), number * gpus
        for ranks, engines, each in product(range(1, most + 2), (1, 2, 3, 4, 8), (1, 2, 4, 8)):
            requests = requests_of(ranks, engines, each)
            wide = engines * each
            room = engines <= number * (gpus // each)
            if colocate is None or len(colocate) == 1:
                least = max(ranks, wide)
            else:
                least = ranks + ranks + max(wide, 1)
            try:
                found = plan(requests, nodes, colocate)
            except UserError:
                assert least > most or not room
                refused += 1
            else:
                assert least <= most and room
                check(found, requests, nodes)
                fitted += 1
    assert fitted > 300 and refused > 300


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=4),
    st.integers(1, 8),
    st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (2, 4)]),
)
def test_nodes_may_differ(gpus, ranks, engines):
    nodes = [Node(f"n{index}", number) for index, number in enumerate(gpus)]
    requests = requests_of(ranks, *engines)
    try:
        found = plan(requests, nodes)
    except UserError:
        return
    if found.on_gpu:
        check(found, requests, nodes)


def test_512_gpus_are_planned_quickly():
    begun = time.perf_counter()
    found = plan(requests_of(256, 32, 8), nodes_of(64, 8))
    check(found, requests_of(256, 32, 8), nodes_of(64, 8))
    assert time.perf_counter() - begun < 30  # about 20 ms; a loaded machine is no failure
