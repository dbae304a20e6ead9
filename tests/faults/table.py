"""Makes `docs/reliability.md` of what the fault tests saw: `python -m tests.faults.table`.

FAULT_RESULTS=docs/reliability.json pytest tests/faults -m ""   # then this
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.faults.catalogue import ALL

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "reliability.json"
MARK = "<!-- generated from here by python -m tests.faults.table -->"
HEAD = "| fault | strikes | in phase | method | what happened | seconds | lost | doubled |"


def row(fault: Any, seen: dict[str, Any]) -> str:
    """One line of the table."""
    what = re.sub(r"pid \d+", "pid", seen["what"])
    what = re.sub(r"node [\d.]+", "node", re.sub(r"on [\d.]+\)", "on a node)", what))
    what = re.sub(r"Stacks: .*?txt", "Stacks: …", what)
    what = re.sub(r"/\S*/", "…/", what)
    what = what if len(what) < 150 else what[:149].rstrip() + "…"
    name = {"kill": "kill -9", "freeze": "SIGSTOP", "pause": "SIGSTOP, SIGCONT"}.get(
        fault.how, fault.how
    )
    name += f", {fault.detail}" if fault.detail else ""
    ending = "finished" if fault.ends == "finished" else "one error"
    cells = [name, fault.role, fault.phase, fault.method, f"{ending}: {what}", seen["seconds"]]
    return "| " + " | ".join(map(str, [*cells, seen["lost"], seen["doubled"]])) + " |"


def table(results: dict[str, Any]) -> str:
    """All faults that were seen, in the catalogue's order."""
    known = {fault.id: fault for fault in ALL}
    lines = [row(known[id], seen) for id in known if (seen := results.get(id)) is not None]
    missing = [id for id in known if id not in results]
    text = f"{len(lines)} faults of {len(known)} in the catalogue."
    if missing:
        text += f" Not run: {', '.join(missing)}."
    return "\n".join([text, "", HEAD, "|---" * 8 + "|", *lines, ""])


def page(old: str, results: dict[str, Any]) -> str:
    """The page with its table made anew; what stands above it is kept."""
    above, _, _ = old.partition(MARK)
    return f"{above}{MARK}\n\n{table(results)}"


if __name__ == "__main__":
    path = DOCS / "reliability.md"
    path.write_text(page(path.read_text(), json.loads(RESULTS.read_text())))
