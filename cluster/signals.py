"""Per-token values that a method asks of its copies, before a round's weights change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cluster.arm import Arm
from cluster.residency import at_work, leaves, load_reference
from cluster.session import Session
from trainers.batch import Row
from trainers.roles import ReferenceSource, Role, reference_source

Values = list[np.ndarray]
"""One array per row, of its target tokens."""


def attach_signals(session: Session, arm: Arm, rows: Sequence[Row]) -> None:
    """Write each signal of the method into the rows' tokens.

    Copies on GPUs of their own compute at the same time; those that share one take turns, since it
    would have to hold what all of them compute with.
    """
    if forced := [row for row in rows if row.greedy]:
        with at_work(session, arm, "policy"):
            found = session.trainer("policy").greedy_rows(forced)
        for row, ids in zip(forced, found, strict=True):
            row.target_ids = ids
    signals = arm.method.signals
    begun = {
        signal.name: begin_score(session, arm, signal.role, rows)
        for signal in signals
        if _apart(session, arm, signal.role)
    }
    for signal in signals:
        finish = begun.get(signal.name)
        values = finish() if finish else _score_in_turn(session, arm, signal.role, rows)
        for row, array in zip(rows, values, strict=True):
            row.tokens[signal.name] = array


def begin_score(
    session: Session, arm: Arm, role: Role, rows: Sequence[Row]
) -> Callable[[], Values]:
    """Ask for values of `role`, from its copy or from what stands for it. Waits for nothing; the
    copy has to be there. Returns what waits.
    """
    source = _source(arm)
    if role == "reference" and source in ("resident_copy", "passing_copy"):
        served = session.served("reference")
        called = served.begin("score_rows", rows)
        return lambda: list(served.finish(called, limit="logprobs"))
    group = session.trainer(_home(arm, role))
    adapters = role != "reference" or source == "policy"
    asked = group.begin_rows("score_rows", rows, adapters=adapters)
    return lambda: group.finish_rows(asked, len(rows))


def _score_in_turn(session: Session, arm: Arm, role: Role, rows: Sequence[Row]) -> Values:
    passing = role == "reference" and _source(arm) == "passing_copy"
    if passing:
        load_reference(session, arm)
        values = begin_score(session, arm, role, rows)()
        session.unload("reference")
        return values
    with at_work(session, arm, _home(arm, role)):
        return begin_score(session, arm, role, rows)()


def _apart(session: Session, arm: Arm, role: Role) -> bool:
    """Whether what computes `role`'s values is there already, on GPUs that are its own."""
    home = _home(arm, role)
    passing = role == "reference" and _source(arm) == "passing_copy"
    return not (passing or session.shares(home) or leaves(session, arm, home))


def _home(arm: Arm, role: Role) -> Role:
    """The role whose processes compute the values of `role`."""
    policys = role == "reference" and _source(arm) in ("policy", "policy_without_adapters")
    return "policy" if policys else role


def _source(arm: Arm) -> ReferenceSource:
    return reference_source(arm.method.refreshed, arm.config.train.reference)
