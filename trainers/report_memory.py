"""The report's memory bars: bytes by copy and kind in the phase that binds, and by phase."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from trainers.comparison import Comparison, MethodResult
from trainers.ledger import KINDS, Copies
from trainers.report_charts import color, human_bytes, label, swatches

PAINTS = {
    "weights": "var(--kind0)",
    "packed_weights": "var(--kind0)",
    "gradients": "var(--kind1)",
    "optimizer": "var(--kind2)",
    "masters": "var(--kind4)",
    "communication": "var(--kind5)",
    "activations": "var(--kind3)",
    "logits": "var(--kind6)",
    "kv_cache": "var(--kind7)",
}
"""Kinds that are not here are painted as `unattributed` is."""
OTHER = "var(--muted)"


def memory_section(comparison: Comparison) -> str:
    """A panel for each arm: a bar for each copy, stacked by kind, then one for each phase.

    The copies' bars show the phase in which the device held most, peaks included; a comparison
    without a ledger shows the tensors that stay. All copies' bars have one scale, all phases' too.
    """
    shown = {name: _copies(arm) for name, arm in comparison.arms()}
    totals = [sum(kinds.values()) for copies in shown.values() for kinds in copies.values()]
    if not any(totals):
        return '<p class="muted">No memory was recorded.</p>'
    used = {kind for copies in shown.values() for kinds in copies.values() for kind in kinds}
    colors = {k: PAINTS.get(k, OTHER) for k in (*KINDS, *sorted(used - set(KINDS))) if k in used}
    highest = max(
        (max(arm.memory.device_bytes_by_phase.values(), default=0) for _, arm in comparison.arms()),
        default=0,
    )
    panels = "".join(
        _panel(name, arm, shown[name], max(totals), highest, colors)
        for name, arm in comparison.arms()
        if shown[name]
    )
    return f'{swatches(colors)}<div class="panels">{panels}</div>'


def _copies(arm: MethodResult) -> Copies:
    return arm.memory.by_phase.get(arm.memory.binding_phase or "", {}) or arm.bytes_by_copy


def _panel(
    name: str,
    arm: MethodResult,
    copies: Copies,
    widest: int,
    highest: int,
    colors: Mapping[str, str],
) -> str:
    held = [copy for copy in arm.copies_train if copy in copies]
    order = [*held, *(copy for copy in copies if copy not in held)]
    rows = "".join(_bar(copy, copies[copy], widest, colors, copy not in held) for copy in order)
    training = arm.training_bytes()
    loop = sum(sum(kinds.values()) for kinds in arm.bytes_by_copy.values())
    phases = "".join(
        _bar(
            phase + (" (most)" if phase == arm.memory.binding_phase else ""),
            {"weights": size},
            highest,
            {"weights": color(name)},
            phase != arm.memory.binding_phase,
        )
        for phase, size in arm.memory.device_bytes_by_phase.items()
    )
    return (
        f'<div class="panel"><h3><i style="background:{color(name)}"></i>{escape(label(name))}'
        f" <small>{human_bytes(training)} stay in training, {human_bytes(loop)} in the loop</small>"
        f"</h3>{rows}"
        + (f"<h4>Device bytes by phase, peaks included</h4>{phases}" if phases else "")
        + "</div>"
    )


def _bar(
    name: str, kinds: Mapping[str, int], widest: int, colors: Mapping[str, str], faint: bool
) -> str:
    total = sum(kinds.values())
    segments = "".join(
        f'<b style="width:{100 * kinds[kind] / widest:.3f}%;background:{paint}" '
        f'title="{escape(name)} {escape(kind)}: {human_bytes(kinds[kind])}"></b>'
        for kind, paint in colors.items()
        if kinds.get(kind, 0) > 0
    )
    title = escape(name.replace("_", " "))
    return (
        f'<div class="bar{" shared" if faint else ""}"><span>{title}</span>'
        f"<div>{segments}</div><em>{human_bytes(total)}</em></div>"
    )
