"""The charts of `report.html` as HTML and inline SVG; pure functions from numbers to markup.

Colours come from CSS variables (`trainers.report_assets`), so that one markup serves light and dark
mode. Bars and lanes are sized in percent and reflow on a phone; line charts scale as SVG.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape

from trainers.comparison import Comparison, CurvePoint, MethodResult, PhaseSpan
from trainers.verdicts import percent

LABELS = {
    "base": "Base",
    "honest": "Honest",
    "ppo": "PPO",
    "dpo": "DPO",
    "nsft": "nSFT",
    "sft": "SFT",
    "random": "Random",
}
NUM_COLORS = 10
"""That `trainers.report_assets` has, for light and dark mode."""
CURVES = (
    ("chair_i", "CHAIR_i: share of invented objects", 100.0, "%"),
    ("recall", "Recall of true objects", 100.0, "%"),
    ("score", "Judge score of the rollouts", 1.0, ""),
    ("kl", "KL from the base", 1.0, "nats"),
    ("explained_variance", "Explained variance of the critic", 1.0, ""),
)
_JUDGE = (
    ("pair_accuracy_generated", "with the critique it wrote"),
    ("pair_accuracy_no_critique", "without a critique"),
    ("pair_accuracy_ground_truth_critique", "with the true critique"),
)
_MARKERS = (
    '<circle r="3.6"/>',
    '<rect x="-3.3" y="-3.3" width="6.6" height="6.6"/>',
    '<path d="M0-4.4 4.2 3.2H-4.2Z"/>',
    '<path d="M0-4.8 4.8 0 0 4.8-4.8 0Z"/>',
    '<path d="M-3.4-3.4 3.4 3.4M-3.4 3.4 3.4-3.4" stroke-width="2"/>',
)
_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 440, 250, 46, 14, 14, 40


def label(name: str) -> str:
    """How a model or arm is written in the report."""
    return LABELS.get(name, name)


def color(name: str) -> str:
    """CSS colour of an arm, as `arm_colors` sets it; grey for a model that is no arm."""
    return f"var({_variable(name)}, var(--muted))"


def arm_colors(names: Sequence[str]) -> str:
    """A style rule that gives every arm a colour of its own, in the order of `names`."""
    rules = ""
    for index, name in enumerate(names):
        # Steps of the golden angle stay apart however many there are.
        paint = f"var(--arm{index})" if index < NUM_COLORS else f"hsl({137.5 * index:g} 55% 50%)"
        rules += f"{_variable(name)}: {paint}; "
    return f":root {{ {rules}}}"


def _variable(name: str) -> str:
    # Names of arms are words; from elsewhere anything may come.
    return "--arm-" + re.sub(r"\W", lambda odd: f"_{ord(odd[0]):x}_", name)


def human_bytes(count: float) -> str:
    """`0 B`, `4.2 MB`, `1.1 GB` (powers of ten)."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.{0 if count >= 100 * limit else 1}f} {unit}"
    return f"{count:.0f} B"


def marker(name: str, names: Sequence[str]) -> str:
    """The mark on a line of the arm that is one of `names`, centred on the origin."""
    shape = _MARKERS[names.index(name) % len(_MARKERS)]
    return f'<g fill="{color(name)}" stroke="{color(name)}">{shape}</g>'


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round values (1, 2 or 5 times a power of ten) that span low..high."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= span / count * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def curve_section(comparison: Comparison) -> str:
    """Legend and one line chart for each quantity that any arm reports per round."""
    charts = [chart for each in CURVES if (chart := _line_chart(comparison, *each))]
    if not charts:
        return '<p class="muted">No rounds were recorded.</p>'
    names = list(comparison.methods)
    legend = "".join(
        f'<span><svg width="30" height="12" viewBox="-15 -6 30 12"><path d="M-14 0H14" '
        f'stroke="{color(name)}" stroke-width="2"/>{marker(name, names)}</svg>'
        f"{escape(label(name))}</span>"
        for name, arm in comparison.arms()
        if arm.curve
    )
    return f'<div class="legend">{legend}</div><div class="charts">{"".join(charts)}</div>'


def curve_points(
    comparison: Comparison, arm: MethodResult, key: str
) -> list[tuple[float, float | None]]:
    """(round, value) of one arm; starts from the base's held-out value where there is one."""
    points = [(float(p.round), _value(p, key)) for p in sorted(arm.curve, key=lambda p: p.round)]
    start = comparison.base.metrics.get(key)
    if start is not None and points and points[0][0] > 0:
        points.insert(0, (0.0, start))
    return points


def _line_chart(
    comparison: Comparison, key: str, title: str, scale: float, unit: str
) -> str | None:
    lines = {
        name: [(x, None if y is None else y * scale) for x, y in curve_points(comparison, arm, key)]
        for name, arm in comparison.arms()
        if any(_value(point, key) is not None for point in arm.curve)
    }
    if not lines:
        return None
    honest = comparison.honest.metrics.get(key) if comparison.honest else None
    guide = None if honest is None else honest * scale
    values = [y for line in lines.values() for _, y in line if y is not None]
    values += [] if guide is None else [guide]
    low = min(values) if key in ("recall", "score", "explained_variance") else min(0.0, *values)
    grid_y = ticks(low, max(values))
    last = max(1.0, *(x for line in lines.values() for x, _ in line))
    first = min(x for line in lines.values() for x, _ in line)
    first = first if first < last else 0.0
    grid_x = [t for t in ticks(first, last, 6) if t == int(t) and first <= t <= last]

    def at(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (x - first) / (last - first) * (_W - _LEFT - _RIGHT)
        down = (grid_y[-1] - y) / (grid_y[-1] - grid_y[0]) * (_H - _TOP - _BOTTOM)
        return round(right, 1), round(_TOP + down, 1)

    parts = []
    for tick in grid_y:
        _, y = at(first, tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{_W - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in grid_x:
        x, _ = at(tick, grid_y[0])
        parts.append(f'<text x="{x}" y="{_H - _BOTTOM + 17}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{(_W + _LEFT) / 2}" y="{_H - 5}" text-anchor="middle">round</text>')
    if guide is not None:
        x, y = at(last, guide)
        parts.append(f'<path class="guide" d="M{_LEFT} {y}H{x}"/>')
        up = -5 if key != "recall" else 13
        parts.append(f'<text class="guide-label" x="{_LEFT + 6}" y="{y + up}">honest</text>')
    for name, line in lines.items():
        mark = marker(name, list(comparison.methods))
        places = [(x, None if y is None else at(x, y)) for x, y in line]
        parts.append(_polyline(mark, color(name), places))
    heading = escape(title) + (f" <small>({unit})</small>" if unit else "")
    return (
        f'<figure><figcaption>{heading}</figcaption><svg viewBox="0 0 {_W} {_H}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def _polyline(
    mark: str, paint: str, line: Sequence[tuple[float, tuple[float, float] | None]]
) -> str:
    """Path and marks; a missing value leaves a gap instead of a false straight line."""
    path, marks, pen_up = "", "", True
    crowded = len(line) > 24
    for number, (_, place) in enumerate(line):
        if place is None:
            pen_up = True
            continue
        path += f"{'M' if pen_up else 'L'}{place[0]} {place[1]}"
        pen_up = False
        if not crowded or number in (0, len(line) - 1):
            marks += f'<g transform="translate({place[0]} {place[1]})">{mark}</g>'
    return f'<path class="line" style="stroke:{paint}" d="{path}"/>{marks}'


def timeline_section(comparison: Comparison) -> str:
    """One lane for each arm on a common clock, then the seconds by phase as a table."""
    arms = dict(comparison.arms())
    phases = list(
        dict.fromkeys(
            phase
            for arm in arms.values()
            for phase in [*(span.phase for span in arm.timeline), *arm.seconds_by_phase]
        )
    )
    if not phases:
        return '<p class="muted">No phases were recorded.</p>'
    colors = {phase: f"var(--phase{i % 8})" for i, phase in enumerate(phases)}
    end = max((span.end for arm in arms.values() for span in arm.timeline), default=0.0)
    lanes = ""
    if end > 0:
        for name, arm in arms.items():
            blocks = "".join(
                f'<b style="left:{100 * s.start / end:.3f}%;'
                f'width:{100 * (s.end - s.start) / end:.3f}%;background:{colors[s.phase]}" '
                f'title="{escape(s.phase)}: {s.start:.1f} to {s.end:.1f} s"></b>'
                for s in merge_spans(arm.timeline)
            )
            lanes += (
                f'<div class="lane"><span>{escape(label(name))}</span><div>{blocks}</div></div>'
            )
        marks = "".join(
            f'<i style="left:{100 * t / end:.2f}%">{t:g} s</i>'
            for t in ticks(0.0, end, 5)
            if t <= end
        )
        lanes += f'<div class="lane axis"><span></span><div>{marks}</div></div>'
    return f'{swatches(colors)}<div class="lanes">{lanes}</div>{_phase_table(arms, phases)}'


def _phase_table(arms: Mapping[str, MethodResult], phases: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(label(name))}</th>" for name in arms)
    rows = ""
    for phase in phases:
        cells = (arm.seconds_by_phase.get(phase) for arm in arms.values())
        texts = "".join(f"<td>{'' if c is None else f'{c:.1f}'}</td>" for c in cells)
        rows += f"<tr><th>{escape(phase.replace('_', ' '))}</th>{texts}</tr>"
    sums = "".join(f"<td>{sum(arm.seconds_by_phase.values()):.1f}</td>" for arm in arms.values())
    return (
        f'<div class="scroll"><table class="plain"><thead><tr><th>seconds</th>{head}</tr></thead>'
        f'<tbody>{rows}<tr class="total"><th>all</th>{sums}</tr></tbody></table></div>'
    )


def judge_section(judge: Mapping[str, float | None]) -> str:
    """A bar for each of the judge's accuracies, with chance marked; its other numbers below."""
    rows = ""
    for key, title in _JUDGE:
        value = judge.get(key)
        if value is not None:
            rows += (
                f'<div class="bar"><span>{title}</span><div><b style="width:{100 * value:.1f}%;'
                f'background:var(--kind1)"></b><i class="chance"></i></div>'
                f"<em>{percent(value)}</em></div>"
            )
    known = {key for key, _ in _JUDGE}
    extra = [f"{k} {v:.4g}" for k, v in judge.items() if k not in known and v is not None]
    notes = f"<small>{escape(' · '.join(extra).replace('_', ' '))}</small>" if extra else ""
    return f'<div class="box judge">{rows}{notes}</div>' if rows or notes else ""


def merge_spans(spans: Sequence[PhaseSpan], gap: float = 0.05) -> list[PhaseSpan]:
    """Join neighbours of one phase that are less than `gap` seconds apart."""
    merged: list[PhaseSpan] = []
    for span in sorted(spans, key=lambda s: s.start):
        if merged and merged[-1].phase == span.phase and span.start - merged[-1].end < gap:
            end = max(merged[-1].end, span.end)
            merged[-1] = PhaseSpan(phase=span.phase, start=merged[-1].start, end=end)
        else:
            merged.append(span)
    return merged


def swatches(colors: Mapping[str, str]) -> str:
    """A legend of colour squares."""
    items = "".join(
        f'<span><i style="background:{paint}"></i>{escape(name.replace("_", " "))}</span>'
        for name, paint in colors.items()
    )
    return f'<div class="legend">{items}</div>'


def _value(point: CurvePoint, key: str) -> float | None:
    value: float | None = getattr(point, key)
    return value
