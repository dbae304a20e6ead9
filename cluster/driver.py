"""The online loop, the same for every method: collect, judge, build, train, sync, evaluate."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray

from cluster.ahead import drop_obsolete, settle_ahead
from cluster.arm import Arm
from cluster.best import BestRound, save_policy
from cluster.checkpoints import Checkpoints
from cluster.conditions import measure_conditions
from cluster.failures import RunStoppedError
from cluster.ledger import Ledger
from cluster.preemption import Preempted, finishing, recognised
from cluster.residency import (
    at_work,
    awake,
    clear_disk,
    forget_requests,
    measure_memory,
    place,
    wake_all,
)
from cluster.rollback import with_rollback
from cluster.round_report import report_round
from cluster.session import Session
from cluster.signals import attach_signals
from cluster.sync import check_parity, refresh_reference, sync
from cluster.text_model import writer_folder
from rewards.base import JudgeItem, Judgement
from trainers.comparison import PhaseSpan
from trainers.data.record_file import RecordWriter
from trainers.data.records import Record, Sample, ScoredRollout
from trainers.importance import attach_importance
from trainers.roles import (
    copies_in_loop,
    copies_in_training,
    resident_in_training,
)

EvaluateRound = Callable[[], dict[str, float]]


class PromptSource(Protocol):
    """Where a round's prompts come from; the same for every method with equal seed."""

    def round(self, number: int) -> list[Sample]:
        """The prompts of round `number`, from 1."""


class RolloutSource(Protocol):
    """Where a round's judged rollouts come from: the engine and the judge, or a recording."""

    def collect(self, number: int) -> tuple[dict[str, Sample], list[ScoredRollout]]:
        """Samples by id and judged rollouts of round `number`, from 1."""


def ask_judge(session: Session, arm: Arm, items: Sequence[JudgeItem]) -> list[Judgement]:
    """One judgement per item, in order."""
    with at_work(session, arm, "judge"), awake(session, arm, "judge"):
        return list(session.ask("judge", "judge", items, limit="judge"))


def require_usable(arm: Arm, number: int, bad: int, total: int, reasons: Sequence[str]) -> None:
    """Stop the run if more rollouts of a round failed than the configuration allows."""
    share = arm.config.data.max_dropped_share
    if bad > share * total:
        raise RunStoppedError(
            f"{arm.name} round {number}: {bad} of {total} rollouts failed, more than "
            f"data.max_dropped_share={share:g}; the first: {reasons[0]}"
        )


def run_arm(
    session: Session,
    arm: Arm,
    source: RolloutSource,
    evaluate: EvaluateRound | None = None,
    *,
    online: bool = True,
) -> None:
    """Train `arm.method` for the configured rounds; `arm.result` grows as the rounds pass. At the
    end `final/` is the last round's model, or with `eval.keep_best` the best one's, which the
    engine then holds, too.

    Without `online` (a replay) there is no engine to sync, to check or to evaluate with.
    """
    with_rollback(session, arm, lambda: _run_arm(session, arm, source, evaluate, online=online))


def _run_arm(
    session: Session,
    arm: Arm,
    source: RolloutSource,
    evaluate: EvaluateRound | None,
    *,
    online: bool,
) -> None:
    with session.console.stage(f"{arm.name} load copies"):
        drop_obsolete(session)
        place(session, arm)
    rng = random.Random(arm.config.seed)
    metric = arm.config.eval.keep_best
    best = BestRound(arm, metric) if metric is not None and evaluate is not None else None
    checkpoints = Checkpoints(session, arm, rng, best, online=online)
    finished = arm.round = checkpoints.restore()
    if finished:
        session.console.line(f"{arm.name}: goes on after round {finished}")
        if arm.method.refresh_rate == 1:  # an average was read from the checkpoint
            refresh_copies(session, arm)
    result = arm.result
    result.method = arm.method.name
    result.copies_train = list(copies_in_training(arm.method.copies))
    result.copies_trained = list(arm.method.trained)
    result.copies_loop = list(
        copies_in_loop(
            arm.method.copies,
            judged=arm.config.negatives.needs_judge,
            written=writer_folder(arm.config) is not None,
        )
    )
    if online:
        with arm.phase("sync"):
            sync(session, arm)
    arm.ledger = Ledger(session, arm.method.copies, arm.folder)
    session.traffic.take()  # what loading took is no round's
    try:
        with recognised():
            for number in range(finished + 1, arm.config.rounds + 1):
                run_round(session, arm, source, evaluate, checkpoints, number, online=online)
    except Preempted:
        checkpoints.write()
        raise
    if best is not None and best.path is not None:
        best.restore(session, arm, arm.folder / "final")
    else:
        save_policy(session, arm, arm.folder / "final")
    wake_all(session, arm)
    result.bytes_by_copy = measure_memory(session, arm)
    result.conditions = measure_conditions(session, arm)
    result.memory = arm.ledger.summary(result.memory)
    result.core_seconds = arm.ledger.core_seconds()
    result.seconds_by_phase = arm.clock.seconds()
    result.timeline = [PhaseSpan(phase=p, start=s, end=e) for p, s, e in arm.clock.spans]
    clear_disk(session, arm)


def run_round(
    session: Session,
    arm: Arm,
    source: RolloutSource,
    evaluate: EvaluateRound | None,
    checkpoints: Checkpoints,
    number: int,
    *,
    online: bool,
) -> None:
    """Collect, train, sync and evaluate once; the checkpoint, if one is due, is the round's end."""
    begun = time.perf_counter()
    arm.round = number
    title = f"{arm.name} round {number}/{arm.config.rounds}"
    with session.console.stage(title, total=4) as bar:
        bar.advance(0, "generate and judge")
        if online:
            forget_requests(session, arm)
        samples, judged = source.collect(number)
        with finishing():
            checkpoints.training_begins()
            bar.advance(1, "train")
            metrics = train_round(session, arm, samples, judged, checkpoints.rng, number)
            bar.advance(1, "sync weights")
            parity = None
            # Given up, the answers leave no engine to sync or to evaluate with.
            settled = settle_ahead(session, arm)
            if online and settled:
                with arm.phase("sync"):
                    sync(session, arm, has_base=True)
                with arm.phase("parity"):
                    parity = check_parity(session, arm, list(samples.values()))
            bar.advance(1, "evaluate")
            if evaluate is not None and settled:
                with arm.phase("evaluate"), awake(session, arm, "rollout"):
                    metrics |= evaluate()
                if checkpoints.best is not None:
                    checkpoints.best.offer(session, arm, number, metrics)
            bar.advance(1)
            seconds = time.perf_counter() - begun
            report_round(session, arm, number, samples, judged, metrics, parity, seconds)
            checkpoints.round_done(number)


def train_round(
    session: Session,
    arm: Arm,
    samples: Mapping[str, Sample],
    judged: Sequence[ScoredRollout],
    rng: random.Random,
    number: int,
) -> dict[str, float]:
    """Select rows, ask the copies for their signals, and take the round's optimiser steps."""
    method = arm.method
    with arm.phase("build"):
        selection = method.select(judged, samples, rng)
        if selection.corrections:
            write_records(round_file(arm.folder / "corrections", number), selection.corrections)
    metrics = dict(selection.stats)
    if not selection.groups:
        session.console.warn(
            f"{arm.name} round {number}: nothing to train on, {selection.why_empty}"
        )
        return metrics
    rows = [row for group in selection.groups for row in group]
    with arm.phase("logprobs"):
        attach_signals(session, arm, rows)
    if arm.config.overlap.off_policy_steps:
        metrics |= attach_importance(rows, judged, arm.config.overlap.importance_cap)
    metrics |= method.prepare(selection.groups)
    with arm.phase("train"):
        metrics |= train_copies(session, arm, selection.groups, number)
    refresh_copies(session, arm)
    return metrics


def refresh_copies(session: Session, arm: Arm) -> None:
    """Give the policy's weights to the resident copies that follow it."""
    resident = resident_in_training(arm.method.copies, arm.config.train.reference)
    if stale := [role for role in arm.method.refreshed if role in resident]:
        with arm.phase("refresh"):
            for role in stale:
                refresh_reference(session, arm, role, arm.method.refresh_rate)


def train_copies(
    session: Session, arm: Arm, groups: Sequence[Any], number: int
) -> dict[str, float]:
    """Train all trained copies, at the same time unless they take turns or live in one process.
    Metrics are prefixed by role but the policy's.
    """
    stored = ray.put(list(groups))
    if arm.ledger is not None:
        arm.ledger.count_objects(arm.round)
    roles = arm.method.trained
    train = arm.config.train
    sliced = train.time_slice and any(session.shares(role) for role in roles)
    in_turn = sliced or train.critic == "shared_base"
    turns = [(role,) for role in roles] if in_turn else [roles]
    metrics: dict[str, float] = {}
    for turn in turns:
        threads = max(1, session.num_threads // len(turn))
        with at_work(session, arm, *turn):
            asked = {
                role: session.trainer(role).send(
                    "train",
                    stored,
                    arm.method,
                    arm.method.optimisation(role),
                    seed=arm.config.seed * 1000 + number,
                    num_threads=threads,
                )
                for role in turn
            }
            results = session.wait([each for ranks in asked.values() for each in ranks], "train")
            for role, ranks in asked.items():
                prefix = "" if role == "policy" else f"{role}/"
                metrics |= {prefix + name: value for name, value in results[0].items()}
                results = results[len(ranks) :]
    ratio = metrics.get("first/policy/ratio")
    if ratio is not None and abs(ratio - 1.0) > 1e-3:
        raise RunStoppedError(
            f"{arm.name} round {number}: the first minibatch's ratio is {ratio:.5f}, not 1; old "
            "and new log-probabilities were computed differently (dropout, dtype or padding)"
        )
    return metrics


def write_round(
    folder: Path, number: int, samples: Sequence[Sample], judged: Sequence[ScoredRollout]
) -> None:
    """The round's samples, then its judged rollouts, as one record file."""
    write_records(round_file(folder / "rounds", number), [*samples, *judged])


def round_file(folder: Path, number: int) -> Path:
    """The record file of a round."""
    return folder / f"round_{number:06d}.msgpack"


def write_records(path: Path, records: Sequence[Record]) -> None:
    """A new record file in place of an old one."""
    path.unlink(missing_ok=True)
    with RecordWriter(path) as writer:
        writer.extend(records)


def count(counts: dict[str, int], reason: str) -> None:
    """Add one to `reason`."""
    counts[reason] = counts.get(reason, 0) + 1
