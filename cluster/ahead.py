"""Answers to a round's prompts that are asked for in slices, and perhaps a round early.

A round early is one-step-off-policy: while round n trains, the engine answers the prompts of round
n + 1 with the weights it has, those that round n - 1 left. They are all there before the next
weights are sent, so that every rollout of a round is from the same weights. A checkpoint holds
them: whoever goes on from it has no such weights any more. SIGTERM does not wait for them: a run
that goes on from there answers that round's prompts with the weights it has then.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from actors.answers import DroppedSample
from cluster.arm import Arm
from cluster.deadlines import Limit
from cluster.preemption import ending
from cluster.rollouts import contiguous
from cluster.served import Begun
from cluster.session import Session
from cluster.wait import NotWantedError
from trainers.data.errors import UserError
from trainers.data.record_file import RecordWriter, read_records
from trainers.data.records import Rollout, Sample

ANSWERS, DROPPED = "ahead.msgpack", "ahead.json"
"""In a checkpoint: samples and rollouts; number of their round, and samples without rollouts."""
Made = tuple[list[Rollout], list[DroppedSample]]


@dataclass(slots=True)
class Ahead:
    """A round's prompts, and their answers as far as they were waited for."""

    number: int
    samples: list[Sample]
    begun: list[Begun] = field(default_factory=list)
    """Slices that are still to be waited for, in order."""
    made: list[Made] = field(default_factory=list)
    """What came of those before them."""


def begin_round(session: Session, arm: Arm, samples: Sequence[Sample], number: int) -> Ahead:
    """Ask for the answers to the prompts of round `number`; nothing waits."""
    config = arm.config
    seed = config.seed * 1000 + number
    one_seed = config.rollout.seeds == "answer"
    parts = [part for part in contiguous(samples, config.overlap.judge_slices) if part]
    begun = [
        session.served("rollout").begin(
            "generate",
            [arm.method.ask(sample) for sample in part],
            num_rollouts_per_prompt=config.rollout.num_rollouts_per_prompt,
            temperature=config.rollout.temperature,
            max_tokens=config.rollout.max_tokens,
            seed=seed if one_seed else slice_seed(seed, index),
            prefix=f"r{number}/",
        )
        for index, part in enumerate(parts)
    ]
    return Ahead(number, list(samples), begun)


def slice_seed(seed: int, index: int) -> int:
    """The seed of a slice: the first has the round's own, so that one slice is the whole round;
    the others what chance makes of it, as engines that share a slice do with theirs.
    """
    return seed if index == 0 else random.Random(f"slice-{seed}-{index}").randrange(2**31)


def slices(
    session: Session, ahead: Ahead, *, unless: Callable[[], bool] | None = None
) -> Iterator[Made]:
    """The answers slice by slice, in order; waits for those that are not there yet, `unless` nobody
    wants them any more (`ServedGroup.finish`).
    """
    yield from ahead.made
    while ahead.begun:
        begun, rollout = ahead.begun[0], session.served("rollout")
        made: Made = rollout.finish(begun, limit="generate", unless=unless)
        ahead.begun.pop(0)
        ahead.made.append(made)
        yield made


def settle_ahead(session: Session, arm: Arm) -> bool:
    """Wait for the next round's answers, if they are under way: before the weights change.

    False: SIGTERM came before they were there. They are given up, and with them the engines, which
    would first finish them.
    """
    if arm.ahead is None or not arm.ahead.begun:
        return True
    with arm.phase("generate", in_ledger=False):
        try:
            for _ in slices(session, arm.ahead, unless=ending):
                pass
        except NotWantedError:
            arm.ahead = None
            for process in session.served("rollout").processes:
                process.kill()
            return False
    return True


def drop_obsolete(session: Session) -> None:
    """Wait for the answers and judgements that an arm had asked for when it stopped or went back:
    they are nobody's, and processes do what they are asked in order.
    """
    limits: dict[str, Limit] = {"rollout": "generate", "judge": "judge"}
    for role, limit in limits.items():
        if session.has(role):
            session.served(role).drop(limit)


# In a checkpoint --------------------------------------------------------------------------------


def save_ahead(ahead: Ahead, folder: Path) -> None:
    """Write settled answers into a checkpoint's folder."""
    assert not ahead.begun, "settle them first"
    with RecordWriter(folder / ANSWERS) as writer:
        for sample in ahead.samples:
            writer.append(sample)
        for rollouts, _ in ahead.made:
            for rollout in rollouts:
                writer.append(rollout)
    dropped = [[item.sample_id, item.reason] for _, bad in ahead.made for item in bad]
    (folder / DROPPED).write_text(json.dumps({"round": ahead.number, "dropped": dropped}) + "\n")


def load_ahead(folder: Path) -> Ahead | None:
    """What `save_ahead` wrote, as one slice; None where a checkpoint has none.

    Raises:
        UserError: the files are not what was written; names one.
    """
    if not (folder / ANSWERS).is_file():
        return None
    records: Sequence[object] = read_records(folder / ANSWERS).records
    try:
        values = json.loads((folder / DROPPED).read_text())
        number = int(values["round"])
        dropped = [DroppedSample(str(id), str(reason)) for id, reason in values["dropped"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / DROPPED}: missing or damaged; restore it from a copy") from None
    samples = [record for record in records if isinstance(record, Sample)]
    rollouts = [record for record in records if isinstance(record, Rollout)]
    return Ahead(number, samples, made=[(rollouts, dropped)])
