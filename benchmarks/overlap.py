"""Writes benchmarks/overlap_cpu.json: overlap on against off, in one run.

    python -m benchmarks.overlap
    python -m benchmarks.overlap --prompts 8 --rounds 1 --output /tmp/overlap.json

Slices: the same round is collected (answered and judged) with `overlap.judge_slices` 1 and N in
turn, by turns first: who is second finds the round's images processed. One-step-off-policy: PPO is
trained with `overlap.off_policy_steps` 0 and 1 in turn. Signals: what policy, reference and critic say
of PPO's rows, asked one copy after another and all at the same time, as copies are that have GPUs of
their own. Each actor has one thread, so that on two
cores engine and judge, or engine and trainers, can work side by side, as they do where each has a
device of its own. Ratios are off / on of medians: above 1 overlap pays. What one slice and several
slices say of the same answers is compared, too.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import numpy as np

from benchmarks.real_run import real_run
from benchmarks.result import origin, parser, write
from cluster.ahead import slice_seed
from cluster.arm import Arm
from cluster.driver import ask_judge, run_arm
from cluster.online import OnlineRollouts, judge_items
from cluster.residency import forget_requests, train_spec
from cluster.rollouts import contiguous
from cluster.run import Run
from cluster.session import Session
from cluster.signals import begin_score
from cluster.sources import DrawnPrompts
from cluster.sync import sync
from rewards.base import Judgement
from trainers.data.images import ImageStore
from trainers.registry import make_method


def slices(session: Session, arm: Arm, store: ImageStore, number: int, repeats: int) -> Any:
    """Seconds of collecting one round, with one slice and with `number`."""
    seconds: dict[int, list[float]] = {1: [], number: []}
    config = arm.config
    for repeat in range(repeats + 1):
        for slices in (1, number) if repeat % 2 else (number, 1):
            overlap = config.overlap.model_copy(update={"judge_slices": slices})
            arm.config = config.model_copy(update={"overlap": overlap})
            forget_requests(session, arm)
            prompts = DrawnPrompts(store, config.rollout.num_prompts, repeat)
            begun = time.perf_counter()
            OnlineRollouts(session, arm, prompts).collect(1)
            if repeat:  # the first warms up
                seconds[slices].append(time.perf_counter() - begun)
    arm.config = config
    return {
        "slices": number,
        "seconds": {str(key): values for key, values in seconds.items()},
        "ratio": median(seconds[1]) / median(seconds[number]),
    }


def judged_alike(session: Session, arm: Arm, store: ImageStore, number: int) -> dict[str, Any]:
    """The same answers judged in one call and in slices."""
    samples = DrawnPrompts(store, arm.config.rollout.num_prompts, 99).round(1)
    rollouts, _ = session.ask(
        "rollout",
        "generate",
        samples,
        limit="generate",
        num_rollouts_per_prompt=arm.config.rollout.num_rollouts_per_prompt,
        temperature=1.0,
        max_tokens=arm.config.rollout.max_tokens,
        seed=slice_seed(99, 0),
    )
    items = judge_items({sample.id: sample for sample in samples}, rollouts)
    whole = ask_judge(session, arm, items)
    judge = session.served("judge")
    begun = [judge.begin("judge", part) for part in contiguous(items, number)]
    parts = [each for one in begun for each in judge.finish(one, limit="judge")]
    return compared(whole, parts)


def compared(whole: Sequence[Judgement], parts: Sequence[Judgement]) -> dict[str, Any]:
    """How two judgements of each answer agree. Score gaps are of those that both have one; a
    failure on one side alone, or another reason, is an unequal failure.
    """
    pairs = list(zip(whole, parts, strict=True))
    gaps = [abs(a.score - b.score) for a, b in pairs if a.score is not None and b.score is not None]
    return {
        "answers": len(pairs),
        "equal_critiques": sum(a.critique == b.critique for a, b in pairs),
        "largest_score_gap": max(gaps, default=None),
        "failures": sum(a.failure is not None for a, _ in pairs),
        "unequal_failures": sum(a.failure != b.failure for a, b in pairs),
    }


def off_policy(session: Session, run: Run, store: ImageStore, rounds: int) -> dict[str, Any]:
    """Seconds of PPO's rounds with and without answers that are asked for a round early."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    config = run.config
    for turn in range(2):
        for steps in (1, 0) if turn else (0, 1):
            overlap = config.overlap.model_copy(update={"off_policy_steps": steps})
            changed = config.model_copy(update={"overlap": overlap, "rounds": rounds + 2})
            folder = run.folder / f"ppo-{steps}-{turn}"
            folder.mkdir()
            arm = Arm(
                name=folder.name,
                method=make_method(config.method),
                config=changed,
                model_dir=run.arm.model_dir,
                critic_dir=run.arm.critic_dir,
                folder=folder,
                image_root=str(store.root),
            )
            prompts = DrawnPrompts(store, config.rollout.num_prompts, config.seed)
            run_arm(session, arm, OnlineRollouts(session, arm, prompts))
            # Without the first round, which answers for itself, and the last, which asks no more.
            seconds[steps] += [point.seconds or 0.0 for point in arm.result.curve[1:-1]]
    return {
        "seconds": {str(key): values for key, values in seconds.items()},
        "ratio": median(seconds[0]) / median(seconds[1]),
    }


def signals(session: Session, arm: Arm, store: ImageStore, repeats: int) -> dict[str, Any]:
    """Seconds of a round's signals, in turn and together, and whether they are equal."""
    prompts = DrawnPrompts(store, arm.config.rollout.num_prompts, 7)
    by_id, judged = OnlineRollouts(session, arm, prompts).collect(1)
    rows = [row for group in arm.method.select(judged, by_id, Random(0)).groups for row in group]
    roles = [signal.role for signal in arm.method.signals]
    seconds: dict[str, list[float]] = {"in turn": [], "together": []}
    found: dict[str, list[Any]] = {}
    for repeat in range(repeats + 1):
        for way in list(seconds) if repeat % 2 else list(reversed(seconds)):
            begun = time.perf_counter()
            if way == "together":
                asked = [begin_score(session, arm, role, rows) for role in roles]
                found[way] = [finish() for finish in asked]
            else:
                found[way] = [begin_score(session, arm, role, rows)() for role in roles]
            if repeat:  # the first warms up
                seconds[way].append(time.perf_counter() - begun)
    gap = max(
        float(np.abs(one - other).max())
        for ours, theirs in zip(found["in turn"], found["together"], strict=True)
        for one, other in zip(ours, theirs, strict=True)
    )
    return {
        "copies": len(roles),
        "rows": len(rows),
        "seconds": seconds,
        "ratio": median(seconds["in turn"]) / median(seconds["together"]),
        "largest_gap": gap,
    }


def measure(prompts: int, rounds: int, number: int, folder: Path) -> dict[str, Any]:
    """All comparisons in one session."""
    values = {
        "method": {"name": "ppo"},
        "rollout": {"num_prompts": prompts},
        "checkpoint": {"every": 0},
        "num_threads": 1,
    }
    with real_run(values, folder) as run:
        session, arm, store = run.session, run.arm, run.store
        found: dict[str, Any] = {"off_policy": off_policy(session, run, store, rounds)}
        session.load_trainer("policy", train_spec(arm, "policy"))
        sync(session, arm)
        found["slices"] = slices(session, arm, store, number, 2 * rounds)
        found["signals"] = signals(session, arm, store, 2 * rounds)
        found["judged_alike"] = judged_alike(session, arm, store, number)
    return found


def main() -> None:
    """Measure and write."""
    asked = parser(__doc__, "overlap_cpu.json")
    asked.add_argument("--prompts", type=int, default=32)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--slices", type=int, default=4)
    options = asked.parse_args()
    told = origin("benchmarks.overlap", 1)
    with tempfile.TemporaryDirectory(prefix="quartet-overlap-") as folder:
        found = measure(options.prompts, options.rounds, options.slices, Path(folder))
    result = {**told, "rollouts_per_round": options.prompts * 4, **found}
    write(options.output, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
