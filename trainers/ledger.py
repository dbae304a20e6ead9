"""The memory ledger: bytes by copy, kind and phase, as every process of a run reported them.

A row is one number: in this round and phase, this process held so many bytes of this kind for this
copy when its memory was largest. Rows of one process and phase add up to its whole memory; what
nobody claims is a row of its own, `unattributed`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from trainers.data.errors import UserError
from trainers.json_files import first_problem

PHASES = ("generate", "judge", "logprobs", "train", "sync")
"""Phases of a round at whose end every process reports, in order."""
KINDS = (
    "shared_weights",
    "weights",
    "packed_weights",
    "gradients",
    "optimizer",
    "masters",
    "communication",
    "activations",
    "logits",
    "kv_cache",
    "unattributed",
    "allocator_slack",
    "runtime",
    "objects",
)
"""Kinds in the order of every table. `shared_weights` are those that policy and critic both compute
with, counted at the policy; `masters` are float32 copies of weights held in less;
`packed_weights` are what vLLM hands to oneDNN on a CPU, no tensors any more; `communication` are
buffers of collectives; `runtime` is what a process holds beyond tensors: libraries, interpreter,
CUDA context, on a CPU also memory of freed tensors that malloc keeps; `objects` are Ray's."""
Place = Literal["device", "host", "object_store"]
"""Where bytes are: memory that computes (GPU; without one, the host's), parked in host memory or
belonging to the process there, or in Ray's object store."""


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"not a kind of {', '.join(KINDS)}")
    return kind


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """Bytes of one kind that one process held for one copy at its peak in one phase."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    round: int
    phase: str
    process: str
    """Role and rank, `policy/0`."""
    copy: str
    """A copy of `trainers.roles`, a shared one, or `process` for what belongs to none."""
    kind: Annotated[str, AfterValidator(_known)]
    place: Place
    bytes: int
    """Below 0 only where copies claim more than the allocator counted, as `unattributed`."""
    source: str
    """`storages`, `allocator`, `checkpoint`, `rss`, `nvml`, `ray`, or `unknown`: nobody could count
    them, and 0 stands for that."""
    alone: bool = False
    """The copy takes turns: the others that do were in host memory when this was so."""


_ROW = TypeAdapter(LedgerRow)
Kinds = dict[str, int]
Copies = dict[str, Kinds]


def write_rows(path: Path, rows: Iterable[LedgerRow]) -> None:
    """Append rows to a run's `memory/ledger.jsonl`, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def read_rows(path: Path) -> list[LedgerRow]:
    """The rows of a ledger; a last line that was cut off by a kill is left out.

    Raises:
        UserError: any other line is not a row; names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a ledger ({error}); restore it from a copy") from None
    rows: list[LedgerRow] = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            break
        try:
            rows.append(_ROW.validate_json(line))
        except ValidationError as error:
            raise UserError(
                f"{path}:{number}: not a ledger row ({first_problem(error)}); restore the file"
            ) from None
    return rows


def phase_bytes(rows: Iterable[LedgerRow], place: Place = "device") -> dict[str, int]:
    """Phase -> bytes in `place`, all processes together, in the round where they were most.

    Copies that take turns count once, the largest. The others' own peaks within a phase are added
    as if they came at once: an upper bound where several processes work at the same time.
    """
    sums: dict[tuple[str, int], int] = {}
    turns: dict[tuple[str, int], dict[str, int]] = {}
    for row in rows:
        if row.place != place:
            continue
        key = (row.phase, row.round)
        sums.setdefault(key, 0)
        if row.alone:
            own = turns.setdefault(key, {})
            own[row.copy] = own.get(row.copy, 0) + row.bytes
        else:
            sums[key] += row.bytes
    most: dict[str, int] = {}
    for key, size in sums.items():
        size += max(turns.get(key, {}).values(), default=0)
        most[key[0]] = max(most.get(key[0], 0), size)
    return {phase: most[phase] for phase in PHASES if phase in most}


def binding_phase(rows: Sequence[LedgerRow]) -> str | None:
    """The phase that sets the maximum of device bytes; None without rows."""
    sizes = phase_bytes(rows)
    return max(sizes, key=lambda phase: sizes[phase]) if sizes else None


def copies_at(rows: Sequence[LedgerRow], phase: str, place: Place | None = None) -> Copies:
    """Copy -> kind -> bytes in `phase`, in the round where the phase held most; ranks are added."""
    own = [row for row in rows if row.phase == phase]
    totals: dict[int, int] = {}
    for row in own:
        totals[row.round] = totals.get(row.round, 0) + row.bytes
    if not totals:
        return {}
    number = max(totals, key=lambda round: totals[round])
    copies: Copies = {}
    for row in own:
        if row.round == number and row.bytes and place in (None, row.place):
            kinds = copies.setdefault(row.copy, {})
            kinds[row.kind] = kinds.get(row.kind, 0) + row.bytes
    return {
        copy: {kind: kinds[kind] for kind in sorted(kinds, key=KINDS.index)}
        for copy, kinds in copies.items()
    }
