"""What two runs that are equal to the bit have in common: all but times and processes' memory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MEASURED = {
    "config",
    "created",
    "driver/bytes_received",
    "driver/bytes_sent",
    "environment",
    "memory",
    "seconds",
    "seconds_by_phase",
    "seconds_total",
    "timeline",
}
"""Keys of `compare.json` and `metrics.jsonl` that two equal runs differ in."""


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that a run of one method has decided, by file."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        top = name.split("/")[0]
        if path.suffix in (".safetensors", ".msgpack"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif top == "checkpoints" and path.name == "state.json":
            state = json.loads(path.read_text())
            found[name] = [state[key] for key in ("rng", "method_state", "policy_version", "best")]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found["metrics.jsonl"] = [without_times(json.loads(line)) for line in lines]
    if (folder / "compare.json").is_file():  # an arm's is beside its folder
        found["compare.json"] = without_times(json.loads((folder / "compare.json").read_text()))
    rows = [json.loads(line) for line in (folder / "memory" / "ledger.jsonl").open()]
    # By process, whether or not it was started anew. Those that hold no copy are other runs'.
    found["phases"] = sorted(
        {
            (row["round"], row["phase"], row["process"].split("+")[0])
            for row in rows
            if row["copy"] != "process"
        }
    )
    return found


def without_times(value: Any) -> Any:
    """A JSON value without what is measured anew in every run."""
    if isinstance(value, dict):
        return {
            key: without_times(item)
            for key, item in value.items()
            if key not in MEASURED and not key.endswith("_seconds")
        }
    return [without_times(item) for item in value] if isinstance(value, list) else value


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the files in which two outcomes differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
