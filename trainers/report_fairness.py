"""The report's tables of copies, as the methods declare them, and of the arms' conditions."""

from __future__ import annotations

from html import escape

from trainers.comparison import Comparison
from trainers.conditions import LABELS, Conditions
from trainers.report_charts import color, label


def copies_table(comparison: Comparison) -> str:
    """A row for each arm: method, judge, copies of the training step, and what the loop adds."""
    rows = ""
    for name, arm in comparison.arms():
        own = ", ".join(
            f"<b>{escape(copy)}</b>" if copy in arm.copies_trained else escape(copy)
            for copy in arm.copies_train
        )
        shared = [copy for copy in arm.copies_loop if copy not in arm.copies_train]
        cells = (
            escape(arm.method),
            escape(arm.judge),
            f"<b>{len(arm.copies_train)}</b>",
            own,
            str(len(arm.copies_loop)),
            escape(", ".join(shared).replace("_", " ")),
        )
        rows += _row(name, "".join(f"<td>{cell}</td>" for cell in cells))
    titles = ("method", "judge", "training", "copies (bold: trained)", "loop", "shared by the loop")
    return _table(titles, rows) if rows else ""


def fairness_section(comparison: Comparison) -> str:
    """A row for each arm, a column for each condition; red where another arm's value differs."""
    rows = ""
    measured = [name for name, arm in comparison.arms() if arm.conditions is not None]
    for name in measured:
        conditions = comparison.methods[name].conditions
        assert conditions is not None
        cells = ""
        for what in LABELS:
            others = [
                other
                for difference in comparison.unfair
                if difference.what == what and name in difference.arms
                for other in difference.arms
                if other != name
            ]
            text = escape(described(conditions, what))
            if others:
                all_others = len(others) == len(measured) - 1
                names = "any other" if all_others else ", ".join(map(label, others))
                text += f"<small>not as {escape(names)}</small>"
            cells += f'<td class="differs">{text}</td>' if others else f"<td>{text}</td>"
        rows += _row(name, cells)
    return _table(tuple(LABELS.values()), rows) if rows else ""


def described(conditions: Conditions, what: str) -> str:
    """One condition in words; `-` where it was not measured."""
    part = getattr(conditions, what)
    if part is None:
        return "-"
    values = part.model_dump()
    if what == "micro_batch":
        return f"{values['tokens']} = {values['rows']} rows x {values['length']}"
    known = {key: value for key, value in values.items() if value is not None}
    return ", ".join(f"{key.replace('_', ' ')} {_text(value)}" for key, value in known.items())


def _text(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _row(name: str, cells: str) -> str:
    dot = f'<span class="dot" style="background:{color(name)}"></span>'
    return f"<tr><th>{dot}{escape(label(name))}</th>{cells}</tr>"


def _table(titles: tuple[str, ...], rows: str) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    return (
        '<div class="scroll"><table class="wide words"><thead><tr><th>arm</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
