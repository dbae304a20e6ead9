"""What a run shows while it works: progress bars on a terminal, plain lines everywhere else.

On a terminal every open stage is a bar with elapsed time and time left, under one bar for the whole
run if its stages were announced with `plan`. The log file, and standard output when it is no
terminal, get plain lines with a timestamp and no control codes. Presentation only: nothing here
decides anything, and no method raises because of what it is asked to show.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from cluster.console_tables import comparison_renderables, sample_renderable
from trainers.comparison import Comparison

SECONDS_BETWEEN_LINES = 10.0
"""Plain output prints a stage's progress at most this often."""
WIDTH = 100


class Console:
    """Terminal and log output of one run; also a context manager that closes the log."""

    def __init__(
        self,
        log_path: Path | None = None,
        interactive: bool | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        """Write to standard output and, without control codes, to `log_path` if given.

        `interactive` None means: bars if standard output is a terminal. `quiet` leaves standard
        output to the caller.
        """
        self.quiet = quiet
        self.interactive = sys.stdout.isatty() if interactive is None else interactive
        self.interactive = self.interactive and not quiet
        self._rich = RichConsole(
            force_terminal=self.interactive or None,
            width=None if self.interactive else WIDTH,
            no_color=None if self.interactive else True,
            highlight=False,
            soft_wrap=not self.interactive,
        )
        self._log: TextIO | None = None
        self.folder = Path() if log_path is None else log_path.parent
        """Of the run: where whatever concerns it is written."""
        if log_path is not None:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log = log_path.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.RLock()
        self._progress: Progress | None = None
        self._open: list[Stage] = []
        self._plan: dict[str, float] = {}
        self._planned_done: dict[str, float] = {}

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the bars and close the log file; safe to call twice."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def plan(self, stages: Mapping[str, float]) -> None:
        """Announce the outermost stages by title with their expected seconds.

        The time left is the expected time of what is still to come, scaled by how much slower or
        faster than expected the finished stages were.
        """
        self._plan, self._planned_done = dict(stages), {}
        self.line(f"plan: {', '.join(stages)}; about {duration(sum(stages.values()))}", "dim")

    def remaining(self) -> float | None:
        """Expected seconds until the end of the planned stages; None without a plan."""
        if not self._plan:
            return None
        expected = sum(self._plan[title] for title in self._planned_done)
        scale = sum(self._planned_done.values()) / expected if expected > 0 else 1.0
        left = sum(s for title, s in self._plan.items() if title not in self._planned_done) * scale
        if self._open and self._open[0].title in self._plan:
            current = self._open[0]
            left -= min(current.elapsed, self._plan[current.title] * scale)
        return max(0.0, left)

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Stage]:
        """Show that `title` is under way, out of `total` units if known; stages may be nested."""
        stage = Stage(self, title, total, depth=len(self._open))
        with self._lock:
            self._open.append(stage)
            self._start_bars()
            if self._progress is not None:
                stage.task = self._progress.add_task(stage.label, total=total, stage=stage)
        left = self.remaining() if stage.depth == 0 else None
        hint = f" (about {duration(left)} of the run left)" if left else ""
        self._plain(f"{stage.label} ...{hint}")
        outcome = "done"
        try:
            yield stage
        except BaseException as error:
            outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            raise
        finally:
            with self._lock:
                self._open.remove(stage)
                if stage.depth == 0 and stage.title in self._plan:
                    self._planned_done[stage.title] = stage.elapsed
                self._stop_bars(stage)
            counted = f", {stage.count}" + (f"/{total}" if total else "") if stage.count else ""
            text = f"{stage.label} {outcome}, {duration(stage.elapsed)}{counted}"
            style = "green" if outcome == "done" else "red"
            if self.interactive and (stage.depth == 0 or outcome != "done"):
                mark = "✓" if outcome == "done" else "✗"
                self._rich.print(f"[{style}]{mark}[/] {text}")
            self._plain(text)

    def line(self, text: str, style: str | None = None) -> None:
        """Print one line; `style` is a rich style for the terminal."""
        if self.interactive:
            self._rich.print(Text(text, style=style or ""))
        self._plain(text)

    def warn(self, text: str) -> None:
        """Print one line in red, marked as a warning."""
        self.line(f"warning: {text}", "bold red")

    def log_size(self) -> int:
        """Bytes in the log file so far; 0 without one."""
        return 0 if self._log is None else self._log.tell()

    def log(self, text: str) -> None:
        """Write to the log file only: what is too long for the terminal."""
        if self._log is not None:
            self._log.write(text.rstrip() + "\n")

    def round_line(
        self, arm: str, round: int, rounds: int, values: Mapping[str, float | int | str | None]
    ) -> None:
        """One line for a finished round: `score` with `score_std` as its spread, then the rest."""
        shown: list[str] = []
        for name, value in values.items():
            if name == "score_std":
                continue
            spread = values.get("score_std") if name == "score" else None
            text = number(value) + (f" ± {number(spread)}" if spread is not None else "")
            shown.append(f"{name} {text}")
        self.line(f"{arm:<6} round {round:>{len(str(rounds))}}/{rounds}  " + "  ".join(shown))

    def sample(
        self, prompt: str, response: str, critique: str | None, score: float | str | None
    ) -> None:
        """A small table with one rollout and what the judge said of it."""
        self._block(sample_renderable(prompt, response, critique or "", number(score)))

    def comparison_table(self, comparison: Comparison) -> None:
        """The final table, at most 100 columns, then verdicts (green or red) and warnings."""
        for renderable in comparison_renderables(comparison):
            self._block(renderable)

    def _block(self, renderable: object) -> None:
        if self.interactive:
            self._rich.print(renderable)
        plain = RichConsole(width=WIDTH, no_color=True, highlight=False, force_terminal=False)
        with plain.capture() as capture:
            plain.print(renderable)
        for text in capture.get().splitlines():
            self._plain(text.rstrip(), stamp=False)

    def _plain(self, text: str, stamp: bool = True) -> None:
        """A line for the log, and for standard output if it is no terminal."""
        with self._lock:
            stamped = f"{time.strftime('%H:%M:%S')} {text}".rstrip()
            if self._log is not None:
                self._log.write(stamped + "\n")
            if not self.interactive and not self.quiet:
                print(stamped if stamp else text, flush=True)

    def _start_bars(self) -> None:
        if not self.interactive or self._progress is not None:
            return
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _Counts(self),
            console=self._rich,
            transient=True,
        )
        self._progress.start()

    def _stop_bars(self, stage: Stage) -> None:
        if self._progress is None:
            return
        if stage.task is not None:
            self._progress.remove_task(stage.task)  # type: ignore[arg-type]
        if not self._open:
            self._progress.stop()
            self._progress = None


@dataclass(slots=True, eq=False)
class Stage:
    """A stage under way; `advance` moves its bar."""

    console: Console
    title: str
    total: int | None
    depth: int = 0
    count: int = 0
    note: str = ""
    task: int | None = None
    start: float = field(default_factory=lambda: time.monotonic())
    _printed: float = field(default_factory=lambda: time.monotonic())

    @property
    def label(self) -> str:
        """The title, indented by depth."""
        return "  " * self.depth + self.title

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def left(self) -> float | None:
        """Expected seconds to the end at the rate so far; None until it can be known."""
        if not self.total or not self.count:
            return None
        return self.elapsed * max(0, self.total - self.count) / self.count

    def status(self) -> str:
        """`12/40, 0:31, 1:12 left, note`."""
        counts = f"{self.count}/{self.total}" if self.total else str(self.count or "")
        left = "" if self.left is None else f"{duration(self.left)} left"
        return ", ".join(part for part in (counts, duration(self.elapsed), left, self.note) if part)

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more units as done; `note` says what is happening and stays until replaced."""
        self.count += n
        self.note = note or self.note
        now = time.monotonic()
        if now - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = now
            self.console._plain(f"{self.label} {self.status()}")
        progress = self.console._progress
        if progress is not None and self.task is not None:
            progress.update(self.task, completed=self.count)  # type: ignore[arg-type]


class _Counts(ProgressColumn):
    """Counts, times and note of a bar; the outermost one also shows the time left of the run."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._owner = console

    def render(self, task: Task) -> Text:
        stage: Stage = task.fields["stage"]
        left = self._owner.remaining() if stage.depth == 0 else None
        run = "" if left is None else f"  (run: {duration(left)} left)"
        return Text(stage.status() + run)


def number(value: float | int | str | None) -> str:
    """Three significant digits for a float, `-` for what is not known."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """`0:07`, `3:05`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
