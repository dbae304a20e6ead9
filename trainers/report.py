"""`report.html`: one file that answers "four copies, two, or one: what does each cost and buy?".

It needs no server and loads nothing from outside. It shows what `compare.json` holds and leaves out
what a run did not measure, so a single `train` run, a failed arm or missing numbers render too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from trainers.comparison import Comparison, MethodResult, write_atomic
from trainers.conditions import unfair_lines
from trainers.gallery import Gallery, GalleryItem
from trainers.report_assets import CSS
from trainers.report_charts import (
    arm_colors,
    color,
    curve_section,
    human_bytes,
    judge_section,
    label,
    timeline_section,
)
from trainers.report_fairness import copies_table, fairness_section
from trainers.report_gallery import gallery_section
from trainers.report_memory import memory_section
from trainers.verdicts import all_warnings, percent, verdicts

_ROLES = {
    "sft": "control: chosen answers only",
    "random": "floor: random choice",
}
# Metric, heading, whether larger is better (None: neither), percent or plain.
_COLUMNS: tuple[tuple[str, str, bool | None, bool], ...] = (
    ("chair_i", "CHAIR_i", False, True),
    ("chair_s", "CHAIR_s", False, True),
    ("recall", "recall", True, True),
    ("pope_accuracy", "POPE accuracy", True, True),
    ("pope_f1", "POPE F1", True, True),
    ("pope_yes_ratio", "POPE yes ratio", None, True),
    ("response_length", "length, tokens", None, False),
)
Metrics = Mapping[str, float | None]


def write_report(
    comparison: Comparison, gallery: Gallery | Sequence[GalleryItem], path: Path
) -> None:
    """Render and write `path`; a reader sees the old file or the whole new one."""
    items = gallery.items if isinstance(gallery, Gallery) else list(gallery)
    write_atomic(path, render(comparison, items))


def render(comparison: Comparison, items: Sequence[GalleryItem]) -> str:
    """The whole page."""
    title, subtitle = _title(comparison)
    alerts = [f"{label(n)} failed: {a.failure}" for n, a in comparison.arms() if a.failure]
    alerts += unfair_lines(comparison.unfair)
    alerts += all_warnings(comparison)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="muted">{escape(subtitle)}</div>',
        *(f'<div class="alert">{escape(text)}</div>' for text in alerts),
        f'<p class="lead">{_answer(comparison)}</p>',
        _cards(comparison),
        _section("Does it hold?", _tally(comparison), _claims(comparison)),
        _section(
            "Is it fair?",
            "What every arm ran under, measured in its processes. Bytes and seconds compare only "
            "where these are equal; what differs between two arms is red.",
            fairness_section(comparison),
        ),
        _section(
            "Copies, as declared",
            "What each arm's method says that its training step needs, and what the loop shares.",
            copies_table(comparison),
        ),
        _section(
            "Everything measured",
            "Held-out scenes against their ground truth; the judge takes no part. CHAIR_i is the "
            "share of named objects that are not there, CHAIR_s the share of answers with one; "
            "POPE asks whether an object is there. ± is one standard error; below it the change "
            "against the base, grey when within two standard errors. Bytes are those of the "
            "tensors that exist.",
            _table(comparison) + _all_metrics(comparison),
        ),
        _section(
            "Learning, measured after each round",
            "CHAIR_i and recall on held-out scenes (the first of those in the table), the score on "
            "the round's own rollouts.",
            curve_section(comparison),
        ),
        _section(
            "Memory, measured by copy and kind",
            "Bytes of the tensors in each actor, in the phase in which the device held most. "
            "Upright names are the method's own copies; italic ones are shared by the loop.",
            memory_section(comparison),
        ),
        _section(
            "Time, measured by phase",
            "Seconds since the start of each arm.",
            timeline_section(comparison),
        ),
        _section(
            "Held-out images, before and after",
            "Struck-through words name something that is not there, name it wrongly, or repeat it; "
            "underlined ones put it in the wrong place.",
            gallery_section([name for name, _ in comparison.arms()], items),
        ),
        _section(
            "The judge, measured on held-out pairs",
            "Share of pairs in which it scores the truly better answer higher; the line is chance.",
            judge_section(comparison.judge),
        ),
        _section("How this was run", "", _provenance(comparison)),
        "<footer>Every number here was measured in this run and is in compare.json.</footer>",
    ]
    colors = arm_colors(list(comparison.methods))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}{colors}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _section(title: str, text: str, content: str) -> str:
    note = f"<p>{escape(text)}</p>" if text else ""
    return f"<section><h2>{escape(title)}</h2>{note}{content}</section>" if content else ""


def _title(comparison: Comparison) -> tuple[str, str]:
    names = list(comparison.methods)
    title = "Four copies, two, or one?"
    if not {1, 2, 4} <= {len(arm.copies_train) for _, arm in comparison.arms()}:
        title = f"Quartet: {', '.join(label(n) for n in names) or 'no method'}"
    seconds = comparison.seconds_total
    details = [
        f"seed {comparison.seed}",
        "quick run" if comparison.quick else "",
        str(comparison.environment.get("device", "")),
        "" if seconds is None else f"{seconds / 60:.1f} minutes in all",
        comparison.created.replace("T", " ")[:16],
    ]
    return title, " · ".join(part for part in details if part)


def _answer(comparison: Comparison) -> str:
    """The headline in words, from the numbers that exist."""
    base = comparison.base.metrics
    scenes, before = base.get("scenes"), base.get("chair_i")
    where = f"On {scenes:.0f} held-out scenes" if scenes else "On held-out scenes"
    sentences = []
    if before is not None:
        sentences.append(
            f"{where}, {percent(before)} of the objects that the base names are not there."
        )
    for name, arm in comparison.arms():
        after = arm.metrics.get("chair_i")
        if after is not None:
            paint = f'<b style="color:{color(name)}">{escape(label(name))}</b>'
            count = _copies(arm)
            sentences.append(f"{paint} with {count}: <b>{percent(after)}</b>.")
    measured = {n: a.metrics for n, a in comparison.arms() if a.metrics.get("chair_i") is not None}
    if len(measured) > 1:
        best = min(measured, key=lambda name: measured[name]["chair_i"] or 0.0)
        ties = [n for n in measured if n != best and _tied(measured[n], measured[best], "chair_i")]
        if ties:
            names = " and ".join(escape(label(n)) for n in ties)
            sentences.append(
                f"The lead of {escape(label(best))} over {names} is within two standard errors."
            )
    return " ".join(sentences) or "Nothing has been evaluated yet."


def _copies(arm: MethodResult) -> str:
    count = len(arm.copies_train)
    return f"{count} {'copy' if count == 1 else 'copies'}"


def _tied(one: Metrics, other: Metrics, key: str) -> bool:
    """Whether two measurements differ by at most two standard errors of their difference."""
    error = math.hypot(one.get(f"{key}_se") or 0.0, other.get(f"{key}_se") or 0.0)
    return abs((one.get(key) or 0.0) - (other.get(key) or 0.0)) <= 2 * error


def _cards(comparison: Comparison) -> str:
    arms = list(comparison.arms())
    base = comparison.base.metrics
    most = max((arm.training_bytes() for _, arm in arms), default=0)
    longest = max((sum(arm.seconds_by_phase.values()) for _, arm in arms), default=0.0)
    cards = ""
    for name, arm in arms:
        chair, before = arm.metrics.get("chair_i"), base.get("chair_i")
        copies = "".join(f'<b class="solid">{escape(copy)}</b>' for copy in arm.copies_train)
        held, seconds = arm.training_bytes(), sum(arm.seconds_by_phase.values())
        rows = '<div class="group">costs</div>'
        rows += _meter("memory", human_bytes(held), held / most if most else 0, True)
        rows += _meter("time", f"{seconds:.0f} s", seconds / longest if longest else 0, True)
        rows += '<div class="group">buys</div>'
        if chair is not None and before:
            cut = 1 - chair / before
            word = "fewer inventions" if cut >= 0 else "more inventions"
            rows += _meter(word, f"{abs(cut):.0%}", max(0.0, cut), False)
        recall = arm.metrics.get("recall")
        change = _points(recall, base.get("recall"))
        rows += _meter("recall", f"{percent(recall)}{change}", recall or 0.0, False)
        yes = arm.metrics.get("pope_yes_ratio")
        rows += _meter("says yes", percent(yes), yes or 0.0, False, 0.5)
        runs = "" if arm.method == name else f"{label(arm.method)}, judge {arm.judge}"
        role = f"<small>{escape(_ROLES.get(name, runs if arm.method else ''))}</small>"
        if arm.failure:
            role = '<small class="bad">stopped early, see above</small>'
        against = "" if before is None else f", base {percent(before)}"
        cards += (
            f'<div class="card" style="--c:{color(name)}"><h3>{escape(label(name))}'
            f"<small>{_copies(arm)}</small></h3>"
            f'<div class="copies">{copies}{role}</div>'
            f'<div class="big">{percent(chair).replace("not measured", "-")}</div>'
            f"<small>of named objects invented{against}</small><dl>{rows}</dl></div>"
        )
    return f'<div class="cards">{cards}</div>'


def _meter(name: str, value: str, share: float, cost: bool, mark: float | None = None) -> str:
    """A small labelled bar; `mark` draws a line where the ideal is."""
    width = 100 * min(1.0, max(0.0, share))
    ideal = "" if mark is None else f'<u style="left:{100 * mark:.0f}%"></u>'
    return (
        f"<dt>{escape(name)}<b>{escape(value)}</b></dt>"
        f'<dd class="{"cost" if cost else "gain"}"><i style="width:{width:.1f}%"></i>{ideal}</dd>'
    )


def _points(value: float | None, base: float | None) -> str:
    if value is None or base is None:
        return ""
    return f" ({100 * (value - base) + 0.0:+.1f})"


def _tally(comparison: Comparison) -> str:
    results = verdicts(comparison)
    return f"{sum(v.holds for v in results)} of {len(results)} claims hold in this run."


def _claims(comparison: Comparison) -> str:
    rows = "".join(
        f'<li><b class="{"good" if v.holds else "bad"}">{"✓" if v.holds else "✗"}</b><span>'
        f"{escape(v.claim)}<small>{escape(v.numbers)}</small></span></li>"
        for v in verdicts(comparison)
    )
    return f'<div class="box"><ul class="claims">{rows}</ul></div>' if rows else ""


def _table(comparison: Comparison) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for _, title, _, _ in _COLUMNS)
    for title in ("copies in training", "copies in loop", "bytes in training", "bytes in loop"):
        head += f"<th>{title}</th>"
    head += "<th>seconds</th><th>rollouts</th><th>judge calls</th><th>dropped</th>"
    groups = f'<th></th><th colspan="{len(_COLUMNS)}">what it bought, in %</th>'
    groups += '<th colspan="8">what it cost</th>'
    base = comparison.base.metrics
    rows = _row("base", base, {}, None, "")
    if comparison.honest is not None:
        rows += _row("honest", comparison.honest.metrics, base, None, "")
    for index, (name, arm) in enumerate(comparison.arms()):
        rows += _row(name, arm.metrics, base, arm, "" if index else "divide")
    return (
        f'<div class="scroll"><table class="wide"><thead><tr class="groups">{groups}</tr>'
        f"<tr><th>model</th>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(name: str, metrics: Metrics, base: Metrics, arm: MethodResult | None, css: str) -> str:
    cells = "".join(_metric_cell(metrics, base, *column) for column in _COLUMNS)
    costs: list[str] = [""] * 8
    if arm is not None:
        loop = sum(sum(kinds.values()) for kinds in arm.bytes_by_copy.values())
        reasons = "".join(f"<small>{escape(k)} {v}</small>" for k, v in arm.dropped.items() if v)
        costs = [
            f"<b>{len(arm.copies_train)}</b>",
            str(len(arm.copies_loop)),
            human_bytes(arm.training_bytes()),
            human_bytes(loop),
            f"{sum(arm.seconds_by_phase.values()):.0f}",
            f"{arm.rollouts:,}",
            f"{arm.judge_calls:,}",
            f"{sum(arm.dropped.values())}{reasons}",
        ]
    cells += "".join(f"<td>{cost}</td>" for cost in costs)
    dot = f'<span class="dot" style="background:{color(name)}"></span>'
    return f'<tr class="{css}"><th>{dot}{escape(label(name))}</th>{cells}</tr>'


def _metric_cell(
    metrics: Metrics, base: Metrics, key: str, _: str, more_is_better: bool | None, rate: bool
) -> str:
    value, error = metrics.get(key), metrics.get(f"{key}_se")
    if value is None:
        return "<td>-</td>"
    scale = 100.0 if rate else 1.0
    text = f"{scale * value:.1f}" + (f" <small>±{scale * error:.1f}</small>" if error else "")
    text = text.replace("<small>", '<small class="se">')
    before = base.get(key)
    if before is not None:
        change = value - before
        css = ""
        if more_is_better is not None and not _tied(metrics, base, key):
            css = "good" if (change > 0) == more_is_better else "bad"
        text += f'<small class="{css}">{scale * change + 0.0:+.1f}</small>'
    return f"<td>{text}</td>"


def _all_metrics(comparison: Comparison) -> str:
    """Every metric that any model has, extras included, folded away."""
    models: dict[str, Metrics] = {"base": comparison.base.metrics}
    if comparison.honest is not None:
        models["honest"] = comparison.honest.metrics
    models |= {name: arm.metrics for name, arm in comparison.arms()}
    keys = list(dict.fromkeys(key for metrics in models.values() for key in metrics))
    if not keys:
        return ""
    head = "".join(f"<th>{escape(label(name))}</th>" for name in models)
    rows = ""
    for key in keys:
        values = (metrics.get(key) for metrics in models.values())
        cells = "".join(f"<td>{'-' if v is None else f'{v:.4g}'}</td>" for v in values)
        rows += f"<tr><th>{escape(key)}</th>{cells}</tr>"
    return (
        '<details><summary>All metrics as in compare.json</summary><div class="scroll">'
        f'<table class="plain"><thead><tr><th>metric</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _provenance(comparison: Comparison) -> str:
    parts = ""
    for title, data in (
        ("Environment", comparison.environment),
        ("Configuration", comparison.config),
    ):
        if data:
            text = json.dumps(data, indent=2, default=str, ensure_ascii=False)
            parts += f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>"
    return parts
