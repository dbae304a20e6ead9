"""Writes benchmarks/profile_cpu.json: where the time of one round of each method goes.

    python -m benchmarks.round_profile
    python -m benchmarks.round_profile --methods dpo --rounds 1 --prompts 8 --output /tmp/p.json

A run's own rounds, with every process looked at every few milliseconds (`benchmarks/sampler.py`):
by phase and process, the innermost function of ours and the library it had called. The first round
warms up and is left out.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from benchmarks.real_run import real_run
from benchmarks.result import origin, parser, write
from benchmarks.sampler import Sampled, Sampler, phase_of
from cluster.driver import run_arm
from cluster.online import OnlineRollouts
from cluster.run import Run
from cluster.sources import DrawnPrompts
from trainers.data.records import Sample, ScoredRollout


def begin(actor: Any) -> None:
    """In an actor: start to look."""
    actor.sampler = Sampler()
    actor.sampler.start()


def end(actor: Any) -> list[Sampled]:
    """In an actor: what was seen."""
    return list(actor.sampler.stop())


class Profiled:
    """A source of rollouts that begins to look at all processes as the second round begins."""

    def __init__(self, run: Run, source: OnlineRollouts):
        self.run, self.source, self.own = run, source, Sampler()

    def collect(self, number: int) -> tuple[dict[str, Sample], list[ScoredRollout]]:
        """The round's rollouts; before the second round's the samplers start."""
        if number == 2:
            self.handles = {p.name: p.handle for p in self.run.session.processes()}
            ray.get([handle.__ray_call__.remote(begin) for handle in self.handles.values()])
            self.own.start()
        return self.source.collect(number)

    def seen(self) -> dict[str, list[Sampled]]:
        """Process -> what was seen in it."""
        seen = {"driver": self.own.stop()}
        for name, handle in self.handles.items():
            seen[name] = ray.get(handle.__ray_call__.remote(end))
        return seen


def measure(method: str, prompts: int, rounds: int, threads: int, folder: Path) -> dict[str, Any]:
    """Seconds a round by phase, process, function and library, most first."""
    values = {
        "method": {"name": method},
        "rounds": rounds + 1,
        "rollout": {"num_prompts": prompts},
        "num_threads": threads,
    }
    with real_run(values, folder) as run:
        drawn = DrawnPrompts(run.store, prompts, run.config.seed)
        source = Profiled(run, OnlineRollouts(run.session, run.arm, drawn))
        run_arm(run.session, run.arm, source, None)
        seen, clock = source.seen(), run.arm.clock
    spans = [(name, clock.start + start, clock.start + end) for name, start, end in clock.spans]
    begun = min(when for samples in seen.values() for when, *_ in samples)
    return {
        "phases": per_round([s for s in spans if s[1] >= begun - 0.1], rounds),
        "places": places(seen, spans, rounds),
    }


def per_round(spans: Sequence[tuple[str, float, float]], rounds: int) -> dict[str, float]:
    """Seconds a round by phase."""
    sums: defaultdict[str, float] = defaultdict(float)
    for name, start, stop in spans:
        sums[name] += stop - start
    return {name: seconds / rounds for name, seconds in sums.items()}


def places(
    seen: Mapping[str, Sequence[Sampled]], spans: Sequence[tuple[str, float, float]], rounds: int
) -> list[dict[str, Any]]:
    """Seconds a round at each place, most first."""
    sums: defaultdict[tuple[str, str, str, str], float] = defaultdict(float)
    for process, samples in seen.items():
        for when, seconds, function, library in samples:
            sums[(phase_of(when, spans), process, function, library)] += seconds
    keys = ("phase", "process", "function", "library")
    return [
        {**dict(zip(keys, place, strict=True)), "seconds": seconds / rounds}
        for place, seconds in sorted(sums.items(), key=lambda item: -item[1])
    ]


def main() -> None:
    """Measure and write."""
    asked = parser(__doc__, "profile_cpu.json")
    asked.add_argument("--methods", nargs="+", default=["ppo", "dpo", "nsft"])
    asked.add_argument("--prompts", type=int, default=64)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--threads", type=int, default=2, help="of each actor")
    options = asked.parse_args()
    found: dict[str, Any] = {}
    result = {
        **origin("benchmarks.round_profile", options.threads),
        "rollouts_per_round": options.prompts * 4,
        "measured_rounds": options.rounds,
        "methods": found,
    }
    with tempfile.TemporaryDirectory(prefix="quartet-profile-") as folder:
        for method in options.methods:
            found[method] = measure(
                method, options.prompts, options.rounds, options.threads, Path(folder)
            )
            for place in found[method]["places"][:60]:
                print(
                    f"{place['seconds']:7.3f}  {place['phase']:<10} {place['process']:<10} "
                    f"{place['library']:<12} {place['function']}",
                    flush=True,
                )
            write(options.output, result)


if __name__ == "__main__":
    main()
