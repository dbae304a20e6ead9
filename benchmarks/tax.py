"""Writes benchmarks/tax_cpu.json: what a round costs beyond the engines' own work.

    python -m benchmarks.tax                      # ppo, dpo, nsft; 256 rollouts a round
    python -m benchmarks.tax --methods dpo --prompts 8 --rounds 2 --output /tmp/tax.json
    python -m benchmarks.tax --width 3 --methods dpo nsft --output benchmarks/tax_wide_cpu.json

The rounds are a run's own (session, driver, actors; default settings, no evaluation). Within each
round, right after the product's call and on the same tensors, the raw calls are timed in the same
processes (`benchmarks/bare.py`): vLLM's generate, the judge's generate and forward, forwards for
log-probabilities, DeepSpeed's steps, vLLM's reload of weights. Their time is taken out of the
round's. `throughput` is against `LLM.generate` as it is by default: with texts. tax = seconds of a
round / seconds of its raw calls; whatever is left is the tax: reading and encoding rows, batches,
records, Ray, the memory ledger, the parity check, the checkpoint. The first round warms up. Figures
are medians over the rounds.

With `--width` the policy is as many times as wide as the built-in model, with random weights, so
that engines have more to do for the same rows.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from benchmarks import bare
from benchmarks.figures import phase_seconds, summary
from benchmarks.real_run import real_run
from benchmarks.result import origin, parser, write
from cluster import driver
from cluster.arm import Arm
from cluster.bench_models import widened
from cluster.driver import run_arm
from cluster.online import OnlineRollouts
from cluster.session import Session
from cluster.sources import DrawnPrompts
from rewards.base import JudgeItem
from trainers.data.drawn_model import build_processor, save_pretrained_folder
from trainers.data.records import Sample, ScoredRollout


class Watched:
    """A source of rollouts that times each round, and the raw calls beside it.

    Args:
        source: the run's own.
    """

    def __init__(self, session: Session, arm: Arm, source: OnlineRollouts):
        self.session, self.arm, self.source = session, arm, source
        self.rounds: list[dict[str, Any]] = []
        self._number = 0
        self._begun = self._cpu = self._out = self._cpu_out = 0.0
        self._in_train = 0.0
        """What the raw calls took that are made inside the phase."""
        self._raw: dict[str, list[bare.Timed]] = {}
        self._spans = 0

    def collect(self, number: int) -> tuple[dict[str, Sample], list[ScoredRollout]]:
        """The round before is over; this one begins."""
        self._end_round()
        self._number, self._raw = number, {}
        self._out = self._cpu_out = self._in_train = 0.0
        self._spans = len(self.arm.clock.spans)
        self._cpu, self._begun = self._all_cpu(), time.perf_counter()
        samples, judged = self.source.collect(number)
        with Aside(self):
            self._answers_and_judgements(list(samples.values()), judged)
        return samples, judged

    def train_copies(
        self, session: Session, arm: Arm, groups: Any, number: int
    ) -> dict[str, float]:
        """In place of the driver's: the product's steps, then the raw ones on the same groups."""
        metrics = original_train_copies(session, arm, groups, number)
        out = self._out
        with Aside(self):
            self._scores_and_steps(groups, number)
            self._weights()
        self._in_train = self._out - out
        return metrics

    def _end_round(self) -> None:
        if not self._number:
            return
        wall = time.perf_counter() - self._begun - self._out
        cpu = self._all_cpu() - self._cpu - self._cpu_out
        raw = {name: _summed(parts) for name, parts in self._raw.items()}
        tokens = sum(len(item.rollout.token_ids) for item in self._judged)
        self.rounds.append(
            {
                "round": self._number,
                "seconds": wall,
                "cpu_seconds": cpu,
                "phases": phase_seconds(
                    self.arm.clock.spans[self._spans :], {"train": self._in_train}
                ),
                "raw": raw,
                "tokens": tokens,
            }
        )
        self._number = 0

    def _all_cpu(self) -> float:
        asked = [p.handle.__ray_call__.remote(bare.cpu_seconds) for p in self.session.processes()]
        return time.process_time() + float(sum(ray.get(asked)))

    def _call(self, phase: str, function: Any, *calls: tuple[Any, tuple[Any, ...]]) -> None:
        """Raw calls of one phase, to all at the same time; the longest counts."""
        asked = []
        for role, arguments in calls:
            trained = role in self.arm.method.trained
            handle = self.session.trainer(role).actors[0] if trained else self.session.actor(role)
            asked.append(handle.__ray_call__.remote(function, *arguments))
        found = ray.get(asked)
        longest = {key: max(timed[key] for timed in found) for key in found[0]}
        longest["cpu_seconds"] = sum(timed["cpu_seconds"] for timed in found)
        self._raw.setdefault(phase, []).append(longest)

    def _answers_and_judgements(
        self, samples: Sequence[Sample], judged: Sequence[ScoredRollout]
    ) -> None:
        self._judged = judged
        config, by_id = self.arm.config, {sample.id: sample for sample in samples}
        seed = config.seed * 1000 + self._number
        rollout = config.rollout.model_dump()
        self._call("generate", bare.generate, ("rollout", (samples, rollout, seed)))
        self._call("bare_loop", bare.generate, ("rollout", (samples, rollout, seed, True)))
        items = [
            JudgeItem(sample=by_id[item.rollout.sample_id], rollout=item.rollout) for item in judged
        ]
        self._call("judge", bare.judge, ("judge", (items,)))

    def _scores_and_steps(self, groups: Any, number: int) -> None:
        method, config = self.arm.method, self.arm.config
        rows = [row for group in groups for row in group]
        for signal in method.signals:
            self._call("logprobs", bare.logprobs, (signal.role, (rows,)))
        stored, roles = ray.put(list(groups)), method.trained
        threads = max(1, self.session.num_threads // len(roles))
        seed = config.seed * 1000 + number
        self._call(
            "train",
            bare.train,
            *((role, (stored, method, method.optimisation(role), seed, threads)) for role in roles),
        )

    def _weights(self) -> None:
        size = self.arm.config.train.bucket_mib * 2**20
        policy = self.session.trainer("policy").actors[0]
        rollout = self.session.actor("rollout")
        buckets = policy.weight_buckets.remote(size, checked=False)
        ray.wait([buckets])
        self._call("sync", bare.load_weights, ("rollout", (buckets,)))
        self._call("copy_in_memory", bare.copy_in_memory, ("rollout", (buckets,)))
        begun = time.perf_counter()
        arrays = policy.__ray_call__.remote(bare.own_arrays)
        size = ray.get(rollout.__ray_call__.remote(bare.received, arrays))
        seconds = time.perf_counter() - begun
        self._raw["copy_between_processes"] = [{"seconds": seconds, "bytes": float(size)}]


class Aside:
    """What happens inside does not count as the round's."""

    def __init__(self, watched: Watched):
        self.watched = watched

    def __enter__(self) -> None:
        self.begun, self.cpu = time.perf_counter(), self.watched._all_cpu()

    def __exit__(self, *exception: object) -> None:
        self.watched._cpu_out += self.watched._all_cpu() - self.cpu
        self.watched._out += time.perf_counter() - self.begun


def _summed(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: sum(part[key] for part in parts) for key in parts[0]}


original_train_copies = driver.train_copies


def wide_model(width: int, folder: Path) -> str | None:
    """A folder with a model of that width; None for the built-in one."""
    if width == 1:
        return None
    path = folder / f"width-{width}"
    save_pretrained_folder(widened(width), build_processor(), path)
    return str(path)


def measure(
    method: str, model: str | None, prompts: int, rounds: int, threads: int, folder: Path
) -> dict[str, Any]:
    """One run of `method`; the figures of its rounds from the second on."""
    values = {
        "model": model,
        "method": {"name": method},
        "rounds": rounds + 2,  # the first warms up, the last has no end of its own
        "rollout": {"num_prompts": prompts},
        "num_threads": threads,
    }
    with real_run(values, folder) as run:
        session, arm = run.session, run.arm
        drawn = DrawnPrompts(run.store, prompts, run.config.seed)
        watched = Watched(session, arm, OnlineRollouts(session, arm, drawn))
        driver.train_copies = watched.train_copies
        try:
            run_arm(session, arm, watched, None)
        finally:
            driver.train_copies = original_train_copies
    return summary(watched.rounds[1:])


def main() -> None:
    """Measure and write."""
    asked = parser(__doc__, "tax_cpu.json")
    asked.add_argument("--methods", nargs="+", default=["ppo", "dpo", "nsft"])
    asked.add_argument("--prompts", type=int, default=64)
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--threads", type=int, default=1, help="of each actor")
    asked.add_argument("--width", type=int, default=1, help="times the built-in model's")
    options = asked.parse_args()
    results: dict[str, Any] = {}
    result = {
        **origin("benchmarks.tax", options.threads),
        "rollouts_per_round": options.prompts * 4,
        "measured_rounds": options.rounds,
        "width": options.width,
        "definition": " ".join((__doc__ or "").split("\n\n")[2].split()),
        "methods": results,
    }
    with tempfile.TemporaryDirectory(prefix="quartet-tax-") as folder:
        model = wide_model(options.width, Path(folder))
        for method in options.methods:
            results[method] = measure(
                method, model, options.prompts, options.rounds, options.threads, Path(folder)
            )
            shown = {k: v for k, v in results[method].items() if k != "rounds"}
            print(method, json.dumps(shown, indent=1), flush=True)
            write(options.output, result)


if __name__ == "__main__":
    main()
