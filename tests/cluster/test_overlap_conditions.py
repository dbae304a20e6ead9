"""A comparison says which of its arms overlap, and which are off-policy."""

from __future__ import annotations

from types import SimpleNamespace

from cluster.conditions import measure_conditions
from cluster.overlap_config import OverlapConfig
from trainers.conditions import Conditions, differences, unfair_lines


def measured(**overlap: int) -> Conditions:
    ranks = SimpleNamespace(ask=lambda name, limit: [Conditions()])
    session = SimpleNamespace(trainer=lambda role: ranks, has=lambda role: False)
    config = SimpleNamespace(overlap=OverlapConfig(**overlap))
    arm = SimpleNamespace(method=SimpleNamespace(copies=()), config=config)
    return measure_conditions(session, arm)


def test_an_off_policy_arm_does_not_compare_with_another():
    arms = {"ppo": measured(), "early": measured(off_policy_steps=1), "dpo": measured()}
    (line,) = unfair_lines(differences(arms))
    assert line.startswith("unfair: not the same overlap: off_policy_steps 0 (ppo, dpo) against ")
    assert line.endswith("against off_policy_steps 1 (early)")
    both = measured(judge_slices=4), measured(judge_slices=4)
    assert not differences(dict(zip("ab", both, strict=True)))
