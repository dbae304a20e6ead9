"""The run's memory ledger: asks every process at each phase's end, and keeps the rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from actors.ledger import Reading
from cluster.session import Session
from trainers.comparison import Memory
from trainers.ledger import (
    Copies,
    LedgerRow,
    Place,
    binding_phase,
    copies_at,
    phase_bytes,
    write_rows,
)
from trainers.roles import Copy

Nested = Mapping[str, Mapping[str, int]]
FILE = Path("memory") / "ledger.jsonl"


class Ledger:
    """Rows of one run of one method, in memory and in the run's `memory/ledger.jsonl`."""

    def __init__(self, session: Session, copies: tuple[Copy, ...], folder: Path):
        self.session = session
        self.path = folder / FILE
        self.path.unlink(missing_ok=True)
        # The judge's model is the method's own reward copy, or a shared one.
        self._names = {} if any(c.role == "reward" for c in copies) else {"reward": "judge"}
        self._objects = 0
        self.rows: list[LedgerRow] = []

    def count_objects(self) -> None:
        """Look at the object store now, while what a phase put there is still held."""
        self._objects = max(self._objects, self.session.object_store_bytes())

    def end_phase(self, round: int, phase: str) -> None:
        """Every process reports the phase that ends now and starts the next with fresh peaks."""
        rows = [
            row
            for process, reading in self.session.readings(phase).items()
            for row in self._rows(round, phase, process, reading)
        ]
        rows.append(
            LedgerRow(
                round=round,
                phase=phase,
                process="raylet",
                copy="process",
                kind="objects",
                place="object_store",
                bytes=self._objects,
                source="ray",
            )
        )
        self._objects = 0
        write_rows(self.path, rows)
        self.rows += rows

    def _rows(self, round: int, phase: str, process: str, reading: Reading) -> list[LedgerRow]:
        def rows(copies: Nested, place: Place, source: str) -> list[LedgerRow]:
            return [
                LedgerRow(
                    round=round,
                    phase=phase,
                    process=process,
                    copy=self._names.get(copy, copy),
                    kind=kind,
                    place=place,
                    bytes=size,
                    source="checkpoint" if kind == "packed_weights" else source,
                    alone=place == "device" and copy in reading.alone,
                )
                for copy, kinds in copies.items()
                for kind, size in kinds.items()
                if size
            ]

        runtime: Copies = {"process": {"runtime": reading.runtime}}
        on_gpu = reading.source == "allocator"
        return [
            *rows(reading.copies, "device", reading.source),
            *rows(reading.parked, "host", "storages"),
            *rows(runtime, "device" if on_gpu else "host", "nvml" if on_gpu else "rss"),
        ]

    def summary(self, moved: Memory) -> Memory:
        """What the report and the table show; `moved` has what went to the host and back."""
        return Memory(
            moved_bytes=moved.moved_bytes,
            moving_seconds=moved.moving_seconds,
            binding_phase=binding_phase(self.rows),
            device_bytes_by_phase=phase_bytes(self.rows, "device"),
            host_bytes_by_phase=phase_bytes(self.rows, "host"),
            object_store_bytes=max(phase_bytes(self.rows, "object_store").values(), default=0),
            by_phase={
                phase: copies_at(self.rows, phase, "device") for phase in phase_bytes(self.rows)
            },
        )
