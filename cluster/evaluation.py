"""One evaluation while it is being made: who answers what, and the columns of its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.answering import answers
from cluster.config import RunConfig
from cluster.console import Console
from cluster.eval_options import Request
from cluster.session import Session
from trainers.benchmarks.questions import Answer, Benchmark
from trainers.data.images import ImageStore
from trainers.data.records import Rollout, Sample


@dataclass(slots=True)
class Evaluation:
    """One evaluation while it is being made."""

    request: Request
    config: RunConfig
    folder: Path
    store: ImageStore
    session: Session
    benchmark: Benchmark
    model_dir: str
    reference: str
    samples: list[Sample]
    columns: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metrics by title: the table."""
    notes: list[str] = field(default_factory=list)

    @property
    def console(self) -> Console:
        """Terminal and log."""
        return self.session.console

    def measure(self, title: str, rollouts: Sequence[Rollout], prefix: str = "") -> None:
        """A column of the table, and the answers in the benchmark's format."""
        judged = self.benchmark.needs_judge
        said = answers(self.session, self.samples, rollouts, judged=judged)
        self.columns[title] = {**self.benchmark.metrics(said), "tokens": _mean_tokens(said)}
        for name, text in self.benchmark.answer_files(said).items():
            (self.folder / f"{prefix}{name}").write_text(text, encoding="utf-8")


def _mean_tokens(said: Sequence[Answer]) -> float:
    return sum(answer.num_tokens for answer in said) / len(said)
