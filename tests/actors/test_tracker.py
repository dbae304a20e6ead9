"""The tracker against sums by hand, and against the allocator's own events."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from actors.tracker import StorageTracker


def test_linear_layer_by_hand():
    layer, x = nn.Linear(4, 8, bias=False), torch.randn(2, 4)
    tracker = StorageTracker({"weights": layer.parameters()})
    with tracker:
        layer(x).sum().backward()
    tracker.name("gradients", [layer.weight.grad])
    # weights 4*8*4; then the output 2*8*4 lives with the sum (4) until the backward frees it; at
    # the peak the gradient of the weights is there beside the sum and the gradient that came in
    assert tracker.at_peak()["weights"] == 128
    assert tracker.at_peak()["gradients"] == 128
    assert tracker.peak == sum(tracker.at_peak().values())
    assert tracker.current == 256  # what stays: weights and their gradient


def test_nothing_counts_twice():
    base = torch.zeros(10)
    tracker = StorageTracker({"weights": [base, base[2:]], "optimizer": [base]})
    with tracker:
        view = base[3:5]
        view.add_(1)
    assert tracker.at_peak() == {"weights": 40}


def test_freed_memory_is_given_back_and_addresses_are_reused():
    tracker = StorageTracker()
    with tracker:
        for _ in range(20):
            torch.ones(1000)
    assert tracker.peak <= 2 * 4000
    assert tracker.current == 0


def test_a_later_tensor_at_the_same_address_does_not_rename_the_earlier_one():
    tracker = StorageTracker()
    with tracker:
        first = torch.ones(1000)
        del first
        second = torch.ones(1000)
    tracker.name("gradients", [second])
    assert tracker.at_peak() == {"activations": 4000}


def test_logits_are_told_by_the_vocabulary():
    tracker = StorageTracker(vocab_size=33)
    with tracker:
        kept = torch.ones(4, 33), torch.ones(4, 32), torch.ones(33)
    assert tracker.at_peak() == {"logits": 4 * 33 * 4, "activations": (4 * 32 + 33) * 4}
    del kept


def test_after_the_block_it_no_longer_counts():
    tracker = StorageTracker()
    with tracker:
        inside = torch.ones(10)
    torch.ones(10_000)
    del inside
    assert tracker.peak == tracker.current == 40


@pytest.mark.parametrize("train", [True, False])
def test_peak_is_that_of_the_allocator(tiny_model, train):
    """torch's profiler sees every allocation, scratch memory inside kernels included."""
    from torch.profiler import ProfilerActivity, profile

    from actors.modules import PolicyModule, load_vlm
    from trainers.batch import Batch

    module = PolicyModule(load_vlm(tiny_model), banned_ids=[0])
    rows, length, targets = 16, 40, 20
    batch = Batch(
        input_ids_BT=torch.randint(8, 40, (rows, length)),
        attention_mask_BT=torch.ones(rows, length, dtype=torch.long),
        positions_N3=torch.stack(
            [
                torch.arange(rows).repeat_interleave(targets),
                torch.arange(length - targets - 1, length - 1).repeat(rows),
                torch.arange(targets).repeat(rows),
            ],
            dim=1,
        ),
        targets_N=torch.randint(8, 40, (rows * targets,)),
        last_B=torch.full((rows,), length - 1),
        mask_BR=torch.ones(rows, targets, dtype=torch.bool),
        model_inputs={},
        tokens={},
        scalars={},
    )

    def step() -> None:
        with torch.set_grad_enabled(train):
            loss = module(batch).logprobs_BR.sum()
            if train:
                loss.backward()
        module.zero_grad(set_to_none=True)

    step()
    tracker = StorageTracker({"weights": [*module.parameters(), *module.buffers()]})
    with tracker:
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    now = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    beyond = tracker.peak - tracker.at_peak()["weights"]
    assert most > 1e6
    assert abs(beyond - most) < 0.01 * most
