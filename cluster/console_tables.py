"""The tables that `cluster.console` prints, as rich renderables; pure functions."""

from __future__ import annotations

from rich.box import ASCII2
from rich.table import Table
from rich.text import Text

from trainers.comparison import Comparison, MethodResult
from trainers.conditions import unfair_arms, unfair_lines
from trainers.ledger import PHASES
from trainers.verdicts import all_warnings, verdicts

NAME_WIDTH = 10
"""Columns of an arm's name; a longer one goes over several lines."""
_PERCENT = (
    ("chair_i", "CHAIR_i"),
    ("chair_s", "CHAIR_s"),
    ("recall", "recall"),
    ("pope_accuracy", "POPE"),
    ("pope_f1", "F1"),
    ("pope_yes_ratio", "yes"),
)


def sample_renderable(prompt: str, response: str, critique: str, score: str) -> Table:
    """One rollout: prompt, response, critique and score, a row each."""
    table = Table(box=ASCII2, show_header=False)
    table.add_column(style="dim", width=8, no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    rows = (("prompt", prompt), ("response", response), ("critique", critique), ("score", score))
    for name, text in rows:
        table.add_row(name, Text(text or "-"))
    return table


def comparison_renderables(comparison: Comparison) -> list[Table | Text]:
    """Table of all arms, then one line for each verdict and each warning."""
    table = Table(box=ASCII2, title="Measured on held-out scenes, in %", padding=(0, 0))
    table.add_column("", overflow="fold", max_width=NAME_WIDTH)
    table.add_column("copies", justify="right")
    for _, title in _PERCENT:
        table.add_column(title, justify="right")
    for title in ("tokens", "MB", "seconds", "rollouts", "judged", "dropped"):
        table.add_column(title, justify="right")
    blank = [""] * 5
    table.add_row("base", "", *_metric_cells(comparison.base.metrics), *blank)
    if comparison.honest is not None:
        table.add_row("honest", "", *_metric_cells(comparison.honest.metrics), *blank)
    unfair = unfair_arms(comparison.unfair)
    for name, arm in comparison.arms():
        # A mark besides the colour, which logs do not have.
        label = Text(f"{name} !" if name in unfair else name)
        label.stylize("red" if arm.failure or name in unfair else "bold")
        table.add_row(
            label, *_cost_cells(arm)[:1], *_metric_cells(arm.metrics), *_cost_cells(arm)[1:]
        )
    lines: list[Table | Text] = [table]
    if comparison.methods:
        lines.append(_copies_table(comparison))
    if any(arm.memory.binding_phase for _, arm in comparison.arms()):
        lines.append(_memory_table(comparison))
    for verdict in verdicts(comparison):
        mark, style = ("yes", "green") if verdict.holds else ("NO ", "red")
        lines.append(Text(f"{mark} {verdict.claim}: {verdict.numbers}", style=style))
    lines += [Text(text, style="bold red") for text in unfair_lines(comparison.unfair)]
    for name, arm in comparison.arms():
        if arm.failure:
            lines.append(Text(f"{name} failed: {arm.failure}", style="bold red"))
    lines += [Text(f"warning: {text}", style="bold red") for text in all_warnings(comparison)]
    return lines


def _copies_table(comparison: Comparison) -> Table:
    """What each arm's method declares, and what the loop shares besides."""
    table = Table(box=ASCII2, title="Copies, as the methods declare them (* trained)", padding=0)
    table.add_column("", overflow="fold", max_width=NAME_WIDTH)
    for title in ("method", "judge", "in the training step", "shared by the loop"):
        table.add_column(title, overflow="fold")
    for name, arm in comparison.arms():
        own = [copy + "*" * (copy in arm.copies_trained) for copy in arm.copies_train]
        shared = [copy for copy in arm.copies_loop if copy not in arm.copies_train]
        table.add_row(
            name,
            arm.method,
            arm.judge,
            f"{len(own)}: {', '.join(own)}",
            f"{len(shared)}: {', '.join(shared)}",
        )
    return table


def _memory_table(comparison: Comparison) -> Table:
    """Device bytes of all processes by phase, peaks included; the phase that binds is marked."""
    title = "Memory by phase, all processes, peaks included, in MB (* most)"
    table = Table(box=ASCII2, title=title, padding=(0, 1))
    table.add_column("", overflow="fold", max_width=NAME_WIDTH)
    for phase in PHASES:
        table.add_column(phase, justify="right")
    table.add_column("object store", justify="right")
    for name, arm in comparison.arms():
        sizes, binding = arm.memory.device_bytes_by_phase, arm.memory.binding_phase
        cells = [
            f"{sizes[phase] / 1e6:.1f}{'*' if phase == binding else ''}" if phase in sizes else ""
            for phase in PHASES
        ]
        table.add_row(name, *cells, f"{arm.memory.object_store_bytes / 1e6:.1f}")
    return table


def _metric_cells(metrics: dict[str, float | None]) -> list[str]:
    cells = []
    for key, _ in _PERCENT:
        value = metrics.get(key)
        cells.append("-" if value is None else f"{100 * value:.1f}")
    length = metrics.get("response_length")
    return [*cells, "-" if length is None else f"{length:.1f}"]


def _cost_cells(arm: MethodResult) -> list[str]:
    """Copies `training/loop`, megabytes of the training copies, seconds and counts."""
    held = arm.training_bytes()
    return [
        f"{len(arm.copies_train)}/{len(arm.copies_loop)}",
        f"{held / 1e6:.1f}",
        f"{sum(arm.seconds_by_phase.values()):.0f}",
        str(arm.rollouts),
        str(arm.judge_calls),
        str(sum(arm.dropped.values())),
    ]
