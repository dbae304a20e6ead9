"""The run's memory ledger: asks every process at each phase's end, and keeps the rows.

Asking does not wait: calls of one process are answered in order, so that a reading belongs to the
phase that ended, however late it is fetched. A process that is busy with the next round's answers
gives its reading after them; until the round's end nobody waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from actors.ledger import Reading
from cluster.process import Asked
from cluster.session import Session
from trainers.comparison import Memory
from trainers.ledger import (
    LedgerRow,
    Place,
    binding_phase,
    copies_at,
    phase_bytes,
    read_rows,
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
        # The judge's model is the method's own reward copy, or a shared one.
        self._names = {} if any(c.role == "reward" for c in copies) else {"reward": "judge"}
        self._objects: int | None = None
        self._asked: list[tuple[int, str, Sequence[Asked], int | None]] = []
        self._start: Sequence[Asked] = session.ask_readings("start")
        self._cpu_start = {"driver": time.process_time()}
        self._cpu_now: dict[str, float] = {}
        # Of a run that goes on from a checkpoint; what came after that has been cut off.
        self.rows: list[LedgerRow] = read_rows(self.path) if self.path.is_file() else []
        """In the order of the phases; of all of them once `fetch` has waited."""

    def count_objects(self, round: int) -> None:
        """Look at the object store now, while what a phase put there is still held.

        Only in rounds 1, 2, 4, 8, ...: the question costs as much as all readings of a phase, and a
        round puts there what the round before did.
        """
        if round & (round - 1) == 0:
            self._objects = max(self._objects or 0, self.session.object_store_bytes())

    def end_phase(self, round: int, phase: str) -> None:
        """Every process reports the phase that ends now and starts the next with fresh peaks. The
        answers are fetched at a later phase's end, as soon as they are there.
        """
        self.fetch(wait=False)
        self._asked.append((round, phase, self.session.ask_readings(phase), self._objects))
        self._objects = None

    def fetch(self, *, wait: bool = True) -> None:
        """Fetch what was asked for, phase by phase, and append it to the file. Without `wait` up to
        the first phase for which a process has not answered.
        """
        while self._asked and (wait or self.session.answered(self._asked[0][2])):
            round, phase, asked, objects = self._asked[0]
            rows: list[LedgerRow] = []
            for process, reading in self.session.fetch_readings(asked).items():
                rows += self._rows(round, phase, process, reading)
                self._cpu_now[process] = reading.cpu_seconds
            if objects is not None:
                rows.append(
                    LedgerRow(
                        round=round,
                        phase=phase,
                        process="raylet",
                        copy="process",
                        kind="objects",
                        place="object_store",
                        bytes=objects,
                        source="ray",
                    )
                )
            del self._asked[0]
            write_rows(self.path, rows)
            self.rows += rows

    def core_seconds(self) -> dict[str, float]:
        """Core-seconds of the driver and of every process since the ledger was made, up to the last
        phase's end: what the operating system counted, all threads together, so that other work on
        the machine is not in it. What the evaluations between took is.
        """
        self.fetch()
        started = self.session.fetch_readings(self._start)
        self._start = []
        self._cpu_start |= {name: reading.cpu_seconds for name, reading in started.items()}
        now = {"driver": time.process_time()} | self._cpu_now
        return {name: now[name] - self._cpu_start.get(name, 0.0) for name in now}

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

        on_gpu = reading.source == "allocator"
        counted = "nvml" if on_gpu else "rss"
        runtime = LedgerRow(
            round=round,
            phase=phase,
            process=process,
            copy="process",
            kind="runtime",
            place="device" if on_gpu else "host",
            bytes=reading.runtime or 0,
            source="unknown" if reading.runtime is None else counted,
        )
        return [
            *rows(reading.copies, "device", reading.source),
            *rows(reading.parked, "host", "storages"),
            *([runtime] if runtime.bytes or runtime.source == "unknown" else []),
        ]

    def summary(self, moved: Memory, *, wait: bool = True) -> Memory:
        """What the report and the table show; `moved` has what went to the host and back. Without
        `wait` of the phases for which all processes have answered.
        """
        self.fetch(wait=wait)
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
