"""Which format a file is in, told from its columns and first rows, and said aloud."""

from __future__ import annotations

from collections.abc import Sequence

from trainers.data.errors import UserError
from trainers.data.formats import bpo, llava, mm_rlhf, ms_swift, rlaif_v, trl, vlfeedback
from trainers.data.formats.base import Format, Row

FORMATS: tuple[Format, ...] = tuple(
    module.FORMAT for module in (trl, rlaif_v, mm_rlhf, llava, bpo, vlfeedback, ms_swift)
)


def find_format(rows: Sequence[Row], name: str = "auto", source: str = "data") -> Format:
    """The format of these first rows of `source`, or the one that `name` forces.

    Raises:
        UserError: none fits, or more than one does; names the columns found and what is known.
    """
    if name != "auto":
        return _named(name)
    columns = frozenset(key for row in rows for key, value in row.items() if value is not None)
    fitting = [item for item in FORMATS if item.detect(columns, rows)]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(sorted(map(str, columns))) or "none"
    if fitting:
        names = " and ".join(item.title for item in fitting)
        options = " or ".join(item.name for item in fitting)
        raise UserError(
            f"{source}: columns {found} fit {names}; set data.format (--format) to {options}"
        )
    known = "; ".join(f"{item.title}: {item.needs}" for item in FORMATS)
    raise UserError(
        f"{source}: no known format; columns found: {found}; rename them to those of one of {known}"
    )


def _named(name: str) -> Format:
    for item in FORMATS:
        if item.name == name:
            return item
    names = ", ".join(item.name for item in FORMATS)
    raise UserError(f"data.format={name}: unknown format; use auto, {names}")
