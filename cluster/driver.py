"""The online loop, the same for every method: collect, judge, build, train, sync, evaluate."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray

from actors.train import TrainSpec
from cluster.config import RunConfig
from cluster.failures import RunStoppedError
from cluster.session import Clock, Session
from rewards.base import JudgeItem, scored
from trainers.batch import Row
from trainers.comparison import CurvePoint, MethodResult, PhaseSpan
from trainers.data.record_file import RecordWriter
from trainers.data.records import Rollout, Sample, ScoredRollout
from trainers.method import Method
from trainers.roles import copies_in_loop, copies_in_training

EvaluateRound = Callable[[], dict[str, float]]


class PromptSource(Protocol):
    """Where a round's prompts come from; the same for every method with equal seed."""

    def round(self, number: int) -> list[Sample]:
        """The prompts of round `number`, from 1."""


class RolloutSource(Protocol):
    """Where a round's judged rollouts come from: the engine and the judge, or a recording."""

    def collect(self, number: int) -> tuple[dict[str, Sample], list[ScoredRollout]]:
        """Samples by id and judged rollouts of round `number`, from 1."""


@dataclass(slots=True)
class Arm:
    """One method being run: what it needs and what it has produced."""

    name: str
    method: Method
    config: RunConfig
    model_dir: str
    critic_dir: str
    folder: Path
    image_root: str
    clock: Clock = field(default_factory=Clock)
    result: MethodResult = field(default_factory=MethodResult)


class OnlineRollouts:
    """Rollouts from the engine, judged as they are needed, written to disk before training."""

    def __init__(self, session: Session, arm: Arm, prompts: PromptSource):
        self.session, self.arm, self.prompts = session, arm, prompts

    def collect(self, number: int) -> tuple[dict[str, Sample], list[ScoredRollout]]:
        """Answer, judge and record the round's prompts."""
        config, arm = self.arm.config, self.arm
        samples = self.prompts.round(number)
        with arm.clock.phase("generate"):
            rollouts, dropped = ray.get(
                self.session.actor("rollout").generate.remote(
                    samples,
                    num_rollouts_per_prompt=config.rollout.num_rollouts_per_prompt,
                    temperature=config.rollout.temperature,
                    max_tokens=config.rollout.max_tokens,
                    seed=config.seed * 1000 + number,
                    prefix=f"r{number}/",
                )
            )
        for item in dropped:
            count(arm.result.dropped, f"prompt: {item.reason}")
        by_id = {sample.id: sample for sample in samples}
        with arm.clock.phase("judge"):
            judged = self._judge(by_id, rollouts)
        arm.result.rollouts += len(rollouts)
        arm.result.judge_calls += len(judged)
        with arm.clock.phase("record"):
            write_round(arm.folder, number, samples, judged)
        failures = [item.failure for item in judged if item.failure is not None]
        for reason in failures:
            count(arm.result.dropped, reason)
        bad = len(failures) + len(dropped) * config.rollout.num_rollouts_per_prompt
        total = len(samples) * config.rollout.num_rollouts_per_prompt
        if bad > config.data.max_dropped_share * total:
            reason = failures[0] if failures else dropped[0].reason
            raise RunStoppedError(
                f"{arm.name} round {number}: {bad} of {total} rollouts failed, more than "
                f"data.max_dropped_share={config.data.max_dropped_share:g}; the first: {reason}"
            )
        return by_id, judged

    def _judge(
        self, samples: Mapping[str, Sample], rollouts: Sequence[Rollout]
    ) -> list[ScoredRollout]:
        items = [JudgeItem(sample=samples[r.sample_id], rollout=r) for r in rollouts]
        judge = self.session.actor("judge")
        judgements = ray.get(judge.judge.remote(items))
        return scored(items, judgements, ray.get(judge.name.remote()))


def run_arm(
    session: Session,
    arm: Arm,
    source: RolloutSource,
    evaluate: EvaluateRound | None = None,
    *,
    online: bool = True,
) -> None:
    """Train `arm.method` for the configured rounds; `arm.result` grows as the rounds pass.

    Without `online` (a replay) there is no engine to sync, to check or to evaluate with.
    """
    with session.console.stage(f"{arm.name} load copies"):
        place(session, arm)
    result = arm.result
    result.copies_train = list(copies_in_training(arm.method.copies))
    result.copies_loop = list(copies_in_loop(arm.method.copies))
    if online:
        with arm.clock.phase("sync"):
            sync(session, arm)
    rng = random.Random(arm.config.seed)
    for number in range(1, arm.config.rounds + 1):
        begun = time.perf_counter()
        title = f"{arm.name} round {number}/{arm.config.rounds}"
        with session.console.stage(title, total=4) as bar:
            bar.advance(0, "generate and judge")
            samples, judged = source.collect(number)
            bar.advance(1, "train")
            metrics = train_round(session, arm, samples, judged, rng, number)
            bar.advance(1, "sync weights")
            parity = None
            if online:
                with arm.clock.phase("sync"):
                    sync(session, arm)
                with arm.clock.phase("parity"):
                    parity = check_parity(session, arm, list(samples.values()))
            bar.advance(1, "evaluate")
            if evaluate is not None:
                with arm.clock.phase("evaluate"):
                    metrics |= evaluate()
            bar.advance(1)
        seconds = time.perf_counter() - begun
        report_round(session, arm, number, samples, judged, metrics, parity, seconds)
    result.bytes_by_copy = measure_memory(session, arm)
    result.seconds_by_phase = arm.clock.seconds()
    result.timeline = [PhaseSpan(phase=p, start=s, end=e) for p, s, e in arm.clock.spans]


def place(session: Session, arm: Arm) -> None:
    """Load the copies that the method declares, and free every other one."""
    config = arm.config
    roles = {copy.role for copy in arm.method.copies}
    with arm.clock.phase("load"):
        for copy in arm.method.copies:
            if copy.trained:
                session.load_trainer(copy.role, train_spec(arm, copy.role))
        if "reference" in roles:
            ray.get(
                session.actor("reference").load.remote(
                    arm.model_dir,
                    arm.image_root,
                    temperature=config.rollout.temperature,
                    bf16=config.train.bf16,
                )
            )
        for role in {"critic", "reference"} - roles:
            session.unload(role)


def train_spec(arm: Arm, role: str) -> TrainSpec:
    """What the trainer of `role` loads."""
    train = arm.config.train
    return TrainSpec(
        role=role,
        model_dir=arm.critic_dir if role == "critic" else arm.model_dir,
        image_root=arm.image_root,
        temperature=arm.config.rollout.temperature,
        zero_stage=train.zero_stage,
        micro_batch_size=train.micro_batch_size,
        gradient_clip=train.gradient_clip,
        betas=(train.adam_beta1, train.adam_beta2),
        weight_decay=train.weight_decay,
        bf16=train.bf16,
        gradient_checkpointing=train.gradient_checkpointing,
    )


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
    with arm.clock.phase("build"):
        selection = method.select(judged, samples, rng)
    metrics = dict(selection.stats)
    if not selection.groups:
        session.console.warn(
            f"{arm.name} round {number}: nothing to train on, all scores of a prompt are within "
            "method.pairs.margin; a judge that gives equal scores cannot teach"
        )
        return metrics
    rows = [row for group in selection.groups for row in group]
    with arm.clock.phase("logprobs"):
        attach_signals(session, method, rows)
    metrics |= method.prepare(selection.groups)
    with arm.clock.phase("train"):
        metrics |= train_copies(session, arm, selection.groups, number)
    if method.refreshed:
        with arm.clock.phase("refresh"):
            buckets = policy_buckets(session, arm)
            ray.get([session.actor(role).refresh.remote(buckets) for role in method.refreshed])
    return metrics


def attach_signals(session: Session, method: Method, rows: Sequence[Row]) -> None:
    """Per-token values that the method asks of its copies, before the weights change."""
    for signal in method.signals:
        if signal.role == "reference":
            values = ray.get(session.actor("reference").score_rows.remote(rows))
        else:
            values = session.trainer(signal.role).score_rows(rows)
        for row, array in zip(rows, values, strict=True):
            row.tokens[signal.name] = array


def train_copies(
    session: Session, arm: Arm, groups: Sequence[Any], number: int
) -> dict[str, float]:
    """Train all trained copies at the same time. Metrics are prefixed by role but the policy's."""
    stored = ray.put(list(groups))
    threads = max(1, session.num_threads // len(arm.method.trained))
    pending = {
        role: session.trainer(role).call(
            "train",
            stored,
            arm.method,
            arm.method.optimisation(role),
            seed=arm.config.seed * 1000 + number,
            num_threads=threads,
        )
        for role in arm.method.trained
    }
    metrics: dict[str, float] = {}
    for role, references in pending.items():
        prefix = "" if role == "policy" else f"{role}/"
        metrics |= {prefix + name: value for name, value in ray.get(references)[0].items()}
    ratio = metrics.get("first/policy/ratio")
    if ratio is not None and abs(ratio - 1.0) > 1e-3:
        raise RunStoppedError(
            f"{arm.name} round {number}: the first minibatch's ratio is {ratio:.5f}, not 1; old "
            "and new log-probabilities were computed differently (dropout, dtype or padding)"
        )
    return metrics


def policy_buckets(session: Session, arm: Arm) -> Any:
    """The policy's weights in the object store (rank 0's; the other ranks only take part)."""
    return session.trainer("policy").call("weight_buckets", arm.config.train.bucket_mib * 2**20)[0]


def sync(session: Session, arm: Arm) -> None:
    """Policy -> rollout engine: buckets, checksums, caches reset, version + 1."""
    ray.get(session.actor("rollout").update_weights.remote(policy_buckets(session, arm)))


def check_parity(session: Session, arm: Arm, samples: Sequence[Sample]) -> float:
    """Mean |rollout logprob - trainer logprob| of fresh rollouts; stops the run if too large.

    These probe rollouts are outside the method's budget: nothing is judged or trained on them.
    """
    config = arm.config
    probes = samples[: config.train.parity_rollouts]
    rollouts, _ = ray.get(
        session.actor("rollout").generate.remote(
            probes,
            num_rollouts_per_prompt=1,
            temperature=config.rollout.temperature,
            max_tokens=config.rollout.max_tokens,
            seed=config.seed,
            prefix="parity/",
        )
    )
    by_id = {sample.id: sample for sample in probes}
    rows = [Row.of_response(by_id[r.sample_id], r.token_ids, r.id) for r in rollouts]
    trained = session.trainer("policy").score_rows(rows)
    gaps = [
        np.abs(np.asarray(rollout.logprobs) - values)
        for rollout, values in zip(rollouts, trained, strict=True)
    ]
    mean = float(np.concatenate(gaps).mean())
    if not mean < config.train.parity_tolerance:
        raise RunStoppedError(
            f"{arm.name}: after the weight sync, rollout and trainer log-probabilities differ by "
            f"{mean:.2e} on average (train.parity_tolerance={config.train.parity_tolerance:g}); "
            "the engine may hold stale weights or caches, or the dtypes differ"
        )
    return mean


def measure_memory(session: Session, arm: Arm) -> dict[str, dict[str, int]]:
    """Bytes by copy and kind of what exists now, each storage counted once per process."""
    sizes: dict[str, dict[str, int]] = {}
    for role in arm.method.trained:
        ranks = ray.get(session.trainer(role).call("memory"))
        sizes[role] = {kind: sum(rank[kind] for rank in ranks) for kind in ranks[0]}
    judge = ray.get(session.actor("judge").memory.remote()) if session.has("judge") else {}
    frozen = {copy.role for copy in arm.method.copies if not copy.trained}
    if "reference" in frozen:
        sizes["reference"] = ray.get(session.actor("reference").memory.remote())
    if "reward" in judge:
        sizes["reward" if "reward" in frozen else "judge"] = judge["reward"]
        sizes["judge_engine"] = judge["judge_engine"]
    if session.has("rollout"):
        sizes["rollout_engine"] = ray.get(session.actor("rollout").memory.remote())
    return {copy: kinds for copy, kinds in sizes.items() if kinds}


def write_round(
    folder: Path, number: int, samples: Sequence[Sample], judged: Sequence[ScoredRollout]
) -> None:
    """The round's samples, then its judged rollouts, as one record file."""
    path = folder / "rounds" / f"round_{number:06d}.msgpack"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with RecordWriter(path) as writer:
        for sample in samples:
            writer.append(sample)
        for item in judged:
            writer.append(item)


def report_round(
    session: Session,
    arm: Arm,
    number: int,
    samples: Mapping[str, Sample],
    judged: Sequence[ScoredRollout],
    metrics: dict[str, float],
    parity: float | None,
    seconds: float,
) -> None:
    """One line on the terminal, one line in metrics.jsonl, one point of the curve."""
    scores = np.array([item.score for item in judged if item.score is not None])
    point = CurvePoint(
        round=number,
        score=float(scores.mean()) if len(scores) else None,
        score_std=float(scores.std()) if len(scores) else None,
        kl=metrics.get("objective/kl"),
        chair_i=metrics.get("chair_i"),
        chair_s=metrics.get("chair_s"),
        recall=metrics.get("recall"),
        response_length=metrics.get("response_length"),
        loss=metrics.get("loss"),
        clip_fraction=metrics.get("policy/clipfrac"),
        explained_variance=metrics.get("val/explained_variance"),
        pairs=int(metrics["pairs/num"]) if "pairs/num" in metrics else None,
        rollouts=len(judged),
        judge_calls=len(judged),
        parity=parity,
        seconds=seconds,
        extra=dict(metrics),
    )
    arm.result.curve.append(point)
    line = {"arm": arm.name, **point.model_dump(exclude={"extra"}), **metrics}
    with (arm.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    shown = {
        "score": point.score,
        "score_std": point.score_std,
        "kl": point.kl,
        "loss": point.loss,
        "pairs": point.pairs,
        "ev": point.explained_variance,
        "chair_i": point.chair_i,
        "recall": point.recall,
        "parity": parity,
        "seconds": seconds,
    }
    if judged:
        show_sample(session, samples, judged)
    session.console.round_line(
        arm.name, number, arm.config.rounds, {k: v for k, v in shown.items() if v is not None}
    )


def show_sample(
    session: Session, samples: Mapping[str, Sample], judged: Sequence[ScoredRollout]
) -> None:
    """The round's worst-judged response, which tells most about policy and judge."""
    worst = min(judged, key=lambda item: float("-inf") if item.score is None else item.score)
    session.console.sample(
        samples[worst.rollout.sample_id].prompt[-1].text,
        worst.rollout.text,
        worst.critique.text if worst.critique else None,
        worst.score if worst.score is not None else worst.failure,
    )


def count(counts: dict[str, int], reason: str) -> None:
    """Add one to `reason`."""
    counts[reason] = counts.get(reason, 0) + 1
