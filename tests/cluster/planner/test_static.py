"""Predicted bytes by hand: 7 trained elements, 10 frozen, 4 trained, and 6 bytes of buffers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.planner.offload import offloaded_copy_bytes
from cluster.planner.static import (
    Sharding,
    TensorShape,
    backward_bucket_bytes,
    frozen_copy_bytes,
    fullest_rank,
    trained_copy_bytes,
)

A = TensorShape(name="a", numel=7, trained=True)
B = TensorShape(name="b", numel=10, trained=False)
C = TensorShape(name="c", numel=4, trained=True)
SHAPES = (A, B, C)


def unreached(shape: TensorShape) -> TensorShape:
    return TensorShape(name=shape.name, numel=shape.numel, trained=shape.trained, reached=False)


def test_a_frozen_copy_is_weights_and_buffers():
    half = TensorShape(name="half", numel=5, trained=False, bytes_per_element=2)
    assert frozen_copy_bytes((*SHAPES, half), 6) == {"weights": 4 * 21 + 2 * 5 + 6}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_stage_0(num_ranks):
    # two moments of 4 bytes for 11 elements, two step counters
    optimizer = 8 * 11 + 4 * 2
    assert trained_copy_bytes(SHAPES, 6, Sharding(zero_stage=0, num_ranks=num_ranks)) == {
        "weights": 4 * 21 + 6,
        "optimizer": optimizer,
        "gradients": 4 * 11,
    }
    sharding = Sharding(zero_stage=0, num_ranks=num_ranks, bf16=True)
    assert trained_copy_bytes(SHAPES, 6, sharding) == {
        "weights": 2 * 21 + 6,
        "optimizer": optimizer,
        "gradients": 2 * 11,
        "masters": 4 * 11,
    }


@pytest.mark.parametrize("stage", [1, 2])
def test_stages_1_and_2_on_one_rank(stage):
    # 11 elements are padded to 12, the next multiple of 2
    assert trained_copy_bytes(SHAPES, 6, Sharding(zero_stage=stage)) == {
        "weights": 4 * (12 + 10) + 6,
        "optimizer": 8 * 12 + 4,
        "gradients": 4 * 12,
        "masters": 4 * 12,
        "communication": 4,
    }


@pytest.mark.parametrize("stage", [1, 2])
def test_stages_1_and_2_on_two_ranks(stage):
    # 12 elements, the next multiple of 4; partitions [0, 6) and [6, 12); a is [0, 7), c [7, 11)
    sharding = Sharding(zero_stage=stage, num_ranks=2, bf16=True)
    both = {
        "weights": 2 * (12 + 10) + 6,
        "optimizer": 8 * 6 + 4,
        "masters": 4 * 6,
        "communication": 4,
    }
    # the whole of a
    assert trained_copy_bytes(SHAPES, 6, sharding) == {**both, "gradients": 2 * 7}
    # the whole of a for its last element, c, and one of padding
    assert trained_copy_bytes(SHAPES, 6, sharding, 1) == {**both, "gradients": 2 * (7 + 4 + 1)}


def test_stages_1_and_2_with_parameters_that_the_loss_does_not_reach():
    def gradients(*shapes: TensorShape) -> int:
        return trained_copy_bytes(shapes, 0, Sharding(zero_stage=2, num_ranks=2), 1)["gradients"]

    # zeros for c beside its place in the buffer
    assert gradients(A, B, unreached(C)) == 4 * (7 + 4 + 4 + 1)
    # no buffer at all, zeros for both
    assert gradients(unreached(A), B, unreached(C)) == 4 * (7 + 4 + 1)


def test_stages_1_and_2_with_more_ranks_than_elements():
    # 16 elements in partitions of 2: c ends in rank 5's, ranks 6 and 7 have padding alone
    sharding = Sharding(zero_stage=1, num_ranks=8)
    gradients = [trained_copy_bytes(SHAPES, 0, sharding, r)["gradients"] for r in range(8)]
    assert gradients == [4 * n for n in (7, 7, 7, 7 + 4, 4, 4 + 1, 2, 2)]


def test_stage_3_on_one_rank():
    sharding = Sharding(zero_stage=3, reduce_bucket_size=100)
    assert trained_copy_bytes(SHAPES, 6, sharding) == {
        "weights": 4 * 21 + 6,
        "optimizer": 8 * 11 + 4,
        "gradients": 4 * 11,
        "masters": 4 * 11,
        "communication": 4 * 100 + 9,
    }


@pytest.mark.parametrize("rank", [0, 1])
def test_stage_3_on_two_ranks(rank):
    # shares of 4, 5 and 2; a and c are small enough to be whole on each rank, in two shares
    sharding = Sharding(
        zero_stage=3,
        num_ranks=2,
        bf16=True,
        reduce_bucket_size=100,
        param_persistence_threshold=7,
        sub_group_size=4,
    )
    assert trained_copy_bytes(SHAPES, 6, sharding, rank) == {
        "weights": 2 * (4 + 5 + 2) + 2 * (8 + 4) + 6,
        "optimizer": 8 * (4 + 2) + 4 * 2,  # a fills the first sub-group
        "gradients": 2 * (4 + 2),
        "masters": 4 * (4 + 2),
        "communication": 2 * 100 + 9,
    }


@given(
    sizes=st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=1, max_size=9),
    stage=st.integers(0, 3),
    bf16=st.booleans(),
)
def test_limiting_case_one_rank(sizes, stage, bf16):
    shapes = [
        TensorShape(name=str(index), numel=2 * size, trained=trained)
        for index, (size, trained) in enumerate([*sizes, (1, True)])
    ]
    sharding = Sharding(zero_stage=stage, bf16=bf16, reduce_bucket_size=1)
    kinds = trained_copy_bytes(shapes, 0, sharding)
    kinds.pop("communication", None)
    tensors = sum(shape.trained for shape in shapes) if stage == 0 else 1
    trained = 16 if bf16 or stage == 0 else 20
    assert sum(kinds.values()) == 4 * tensors + sum(
        shape.numel * (trained if shape.trained else 2 if bf16 else 4) for shape in shapes
    )


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=9),
    stage=st.integers(1, 3),
    num_ranks=st.integers(1, 9),
)
def test_partitions_cover_everything_with_little_padding(sizes, stage, num_ranks):
    shapes = [TensorShape(name=str(n), numel=n, trained=True) for n in sizes]
    sharding = Sharding(zero_stage=stage, num_ranks=num_ranks)
    ranks = [trained_copy_bytes(shapes, 0, sharding, rank) for rank in range(num_ranks)]
    padding = sum(kinds["masters"] for kinds in ranks) // 4 - sum(sizes)
    assert 0 <= padding < (2 * num_ranks if stage < 3 else num_ranks * len(sizes))
    assert all(kinds["gradients"] >= kinds["masters"] for kinds in ranks)


def test_the_bucket_of_a_backward():
    assert backward_bucket_bytes(Sharding(zero_stage=1)) == 2 * 10**9
    assert backward_bucket_bytes(Sharding(zero_stage=2, bf16=True)) == 10**9
    assert backward_bucket_bytes(Sharding(zero_stage=3, bf16=True)) == 0


def test_what_has_no_formula_is_refused():
    half = TensorShape(name="half", numel=8, trained=True, bytes_per_element=2)
    with pytest.raises(ValueError, match=r"ZeRO 2 without bf16: trained parameters must be in"):
        trained_copy_bytes((half,), 0, Sharding(zero_stage=2))
    with pytest.raises(ValueError, match="no parameter is trained"):
        trained_copy_bytes((B,), 0, Sharding(zero_stage=0))
    with pytest.raises(ValueError, match="rank 2 does not exist: there are 2"):
        trained_copy_bytes(SHAPES, 0, Sharding(zero_stage=1, num_ranks=2), 2)
    with pytest.raises(ValueError, match="zero_stage must be 0, 1, 2 or 3, got 4"):
        Sharding(zero_stage=4)
    with pytest.raises(ValueError, match="num_ranks must be at least 1, got 0"):
        Sharding(zero_stage=0, num_ranks=0)


@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 50), st.booleans(), st.booleans()), min_size=1, max_size=9
    ),
    stage=st.integers(0, 3),
    num_ranks=st.integers(1, 9),
)
def test_the_fullest_rank_holds_most(sizes, stage, num_ranks):
    shapes = [
        TensorShape(name=str(index), numel=size, trained=trained, reached=reached)
        for index, (size, trained, reached) in enumerate([*sizes, (1, True, True)])
    ]
    sharding = Sharding(zero_stage=stage, num_ranks=num_ranks)
    sums = [
        sum(trained_copy_bytes(shapes, 6, sharding, rank).values()) for rank in range(num_ranks)
    ]
    assert sums[fullest_rank(shapes, sharding)] == max(sums)


def test_the_fullest_rank_by_hand():
    # rank 0 holds the gradient of a, 7 elements, rank 1 those of a and c and one of padding, 12
    assert fullest_rank(SHAPES, Sharding(zero_stage=2, num_ranks=2)) == 1
    assert fullest_rank(SHAPES, Sharding(zero_stage=3, num_ranks=2)) == 0


@pytest.mark.parametrize("accumulate", [False, True])
def test_an_offloaded_optimizer_on_rank_0_of_two(accumulate):
    # a partition of 6 elements, touched by a, 7 elements, the largest; one norm of 8 bytes
    sharding = Sharding(zero_stage=2, num_ranks=2, bf16=True)
    found = offloaded_copy_bytes(SHAPES, 6, sharding, accumulate=accumulate)
    assert found.device == {"weights": 2 * (12 + 10) + 6, "communication": 2 * 7 + 4 + 8}
    assert found.host == {
        "optimizer": 8 * 6 + 4,
        "masters": 4 * 6,
        "gradients": 4 * 6,
        "communication": 2 * 6 + 2 * 7 + (2 * 7 if accumulate else 0),
    }


def test_an_offloaded_optimizer_of_stage_3():
    sharding = Sharding(zero_stage=3, bf16=True, reduce_bucket_size=100)
    found = offloaded_copy_bytes(SHAPES, 6, sharding, accumulate=True)
    assert found.device == {"weights": 2 * 21 + 6, "communication": 2 * 100 + 5 + 8 * 2}
    assert found.host == {"optimizer": 8 * 11 + 4, "masters": 4 * 11, "gradients": (4 + 2) * 11}


def test_stage_0_does_not_offload():
    with pytest.raises(ValueError, match="ZeRO 0"):
        offloaded_copy_bytes(SHAPES, 6, Sharding(zero_stage=0), accumulate=True)
