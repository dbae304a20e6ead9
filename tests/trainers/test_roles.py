"""Which copies are resident when, from what a method declares and how its reference is had."""

from __future__ import annotations

import pytest

from trainers.dpo import DPO
from trainers.nsft import NSFT
from trainers.ppo import PPO
from trainers.roles import (
    copies_in_training,
    reference_source,
    resident_in_scoring,
    resident_in_training,
)

ALL = ("policy", "critic", "reference", "reward")
NO_REFERENCE = ("policy", "critic", "reward")


@pytest.mark.parametrize(
    ("method", "mode", "source", "scoring", "training"),
    [
        (PPO, "own_copy", "resident_copy", ALL, ALL),
        (PPO, "adapter_off", "policy_without_adapters", NO_REFERENCE, NO_REFERENCE),
        # its reference stays the base, which nothing else holds: loaded for the scoring alone
        (PPO, "cached", "passing_copy", ALL, NO_REFERENCE),
        (DPO, "own_copy", "resident_copy", ("policy", "reference"), ("policy", "reference")),
        # its reference is the policy that the round starts with: never a second copy
        (DPO, "cached", "policy", ("policy",), ("policy",)),
        (NSFT, "own_copy", "resident_copy", ("policy",), ("policy",)),
        (NSFT, "cached", "passing_copy", ("policy",), ("policy",)),
    ],
)
def test_who_computes_the_reference_and_what_is_resident(method, mode, source, scoring, training):
    assert reference_source(method.refreshed, mode) == source
    assert resident_in_scoring(method.copies, method.refreshed, mode) == scoring
    assert resident_in_training(method.copies, mode) == training


@pytest.mark.parametrize("method", [PPO, DPO, NSFT])
def test_what_is_declared_does_not_depend_on_the_mode(method):
    assert resident_in_training(method.copies, "own_copy") == copies_in_training(method.copies)
    for mode in ("adapter_off", "cached"):
        resident = resident_in_training(method.copies, mode)
        assert set(copies_in_training(method.copies)) - set(resident) <= {"reference"}
