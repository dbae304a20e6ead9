"""Rows laid into forwards: by hand, and what holds for all of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.micro_batches import Forwards, in_order, micro_batches, pack
from trainers.batch import Row, encode_row
from trainers.data.processing import Processing


def row(length: int, *images: str) -> Row:
    return Row(id=f"{length}", prompt=(), images=images, scalars={"length": float(length)})


def laid(groups, forwards, *, share=False):
    """Lengths of each forward's rows."""
    lengths = {id(r): int(r.scalars["length"]) for group in groups for r in group}
    order = in_order(groups, lengths, by_length=bool(forwards.tokens), share_images=share)
    return [[lengths[id(r)] for r in rows] for rows in pack(order, lengths, forwards)]


def test_rows_by_hand():
    groups = [(row(3), row(5)), (row(9), row(1)), (row(2),), (row(4),)]
    assert laid(groups, Forwards(rows=4)) == [[3, 5, 9, 1], [2, 4]]
    assert laid(groups, Forwards(rows=3)) == [[3, 5], [9, 1, 2], [4]]
    assert laid(groups, Forwards(rows=1)) == [[3, 5], [9, 1], [2], [4]]  # never split


def test_a_budget_by_hand():
    groups = [(row(4),), (row(10),), (row(3),), (row(5),), (row(6),)]
    # Padded: 10 | 6, 5 = 12 | 4, 3 = 8; as 10 and 6 would be 20, and 6, 5, 4 18.
    assert laid(groups, Forwards(rows=1, tokens=16)) == [[10], [6, 5], [4, 3]]
    # End to end: 10 + 6 = 16; 5 + 4 + 3 = 12.
    assert laid(groups, Forwards(rows=1, tokens=16, packing=True)) == [[10, 6], [5, 4, 3]]
    # What is over the budget goes alone, whole.
    pairs = [(row(2), row(9)), (row(3), row(3))]
    assert laid(pairs, Forwards(rows=1, tokens=8)) == [[2, 9], [3, 3]]


def test_rows_of_an_image_stand_together():
    a, b = [(row(2, "a"),), (row(7, "a"),)], [(row(5, "b"),), (row(3, "b"),)]
    mixed = [a[0], b[0], a[1], b[1], (row(4),), (row(6),)]
    assert laid(mixed, Forwards(rows=2), share=True) == [[2, 7], [5, 3], [4, 6]]
    # By length, the images' longest decides where they come.
    by_length = Forwards(rows=1, tokens=1)
    assert laid(mixed, by_length, share=True) == [[7], [2], [6], [5], [3], [4]]


class Plain:
    """What `collate` asks of a processing, for rows of ids alone."""

    pad_id, image_token_id = 0, 1

    def merge(self, inputs):
        return {}

    def token_inputs(self, ids):
        return {}


steps = st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=3), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    sizes=steps,
    world=st.integers(1, 4),
    tokens=st.integers(0, 60),
    rows=st.integers(1, 5),
    packing=st.booleans(),
    share=st.booleans(),
)
def test_every_row_once_within_the_budget_and_as_many_forwards_on_all_ranks(
    sizes, world, tokens, rows, packing, share
):
    groups = [tuple(row(n, f"{n % 3}") for n in group) for group in sizes]
    encoded = {
        id(r): SimpleNamespace(
            input_ids=np.full(int(r.scalars["length"]), 5),
            target_mask=np.zeros(int(r.scalars["length"]), bool),
            model_inputs={},
        )
        for group in groups
        for r in group
    }
    forwards = Forwards(rows=rows, tokens=tokens, packing=packing, share_images=share)
    found, numbers = [], set()
    largest = max(map(len, sizes))
    for rank in range(world):
        batches = list(
            micro_batches(groups, encoded, Plain(), rank=rank, world_size=world, forwards=forwards)
        )
        numbers.add(len(batches))
        for batch, weight in batches:
            lengths = [int(n) for n in batch.scalars["length"]]
            if weight:
                found += lengths
                assert lengths in sizes or forwards.fit(lengths)  # or a group alone
                assert tokens or len(lengths) <= max(rows, largest)
    assert sorted(found) == sorted(n for group in sizes for n in group)
    assert len(numbers) == 1


def test_a_rank_makes_the_pixels_of_its_own_rows(tiny_model, store, samples):
    groups = [(Row.of_response(s, (9, 10), s.id),) for s in samples[:8]]
    for rank in range(2):
        processing = Processing(tiny_model, store)
        encoded = {id(r): encode_row(r, processing) for (r,) in groups}
        made = micro_batches(
            groups, encoded, processing, rank=rank, world_size=2, forwards=Forwards(rows=2)
        )
        next(made)
        assert len(processing._images._cache) == 2  # and each when it is its turn
        assert len(list(made)) == 1 and len(processing._images._cache) == 4
