"""One process's side of the memory ledger: what it holds at each phase's end, and its peaks.

Tensors that stay (weights, optimiser states) are read from the objects that own them. Tensors that
come and go are tracked in the largest batch so far of each phase (`actors.tracker`), so that most
batches cost nothing. On a GPU the allocator's maximum is the truth: what copies claim is held
against it, and the rest is `unattributed`. On a CPU, whose allocator keeps none, the tracked sum
is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from actors.memory import storage_bytes
from actors.tracker import StorageTracker, live_tensors

GROWTH = 1.05
"""A batch is tracked again when it is larger than the largest tracked one by this factor."""
BORROWED = "borrowed_weights"
"""Kind of tensors that another copy of the process counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One process at the end of one phase, bytes."""

    copies: dict[str, dict[str, int]]
    """copy -> kind -> bytes at the process's peak in the phase; `process` for what is no copy's."""
    parked: dict[str, dict[str, int]] = field(default_factory=dict)
    """copy -> kind -> bytes that are parked in host memory."""
    alone: frozenset[str] = frozenset()
    """Copies that were on the device for their turn only."""
    runtime: int | None
    """Bytes of the process that are no tensors; None where the driver does not tell."""
    source: str
    """`storages` or `allocator`: where the sum of `copies` comes from."""
    cpu_seconds: float = field(default_factory=time.process_time)
    """Core-seconds of the process since it started, all its threads."""


class PhaseMeter:
    """Collects a process's peaks between phase boundaries."""

    def __init__(self) -> None:
        self._peaks: dict[str, dict[str, dict[str, int]]] = {}
        self._sizes: dict[tuple[str, str], int] = {}
        self._active: set[str] = set()
        self._noted: dict[str, dict[str, int]] = {}
        self._unattributed: int | None = None
        _reset_peaks()

    def forget(self) -> None:
        """Drop the peaks of an earlier copy; for when a new one is loaded."""
        self._peaks.clear()
        self._sizes.clear()
        self._active.clear()
        self._noted.clear()
        self._unattributed = None

    @contextmanager
    def track(
        self,
        phase: str,
        copy: str,
        size: int,
        held: Callable[[], dict[str, list[Tensor]]],
        vocab_size: int | None,
    ) -> Iterator[StorageTracker | None]:
        """Count one batch of `size` tokens, if it is the largest of its phase and copy so far.

        Yields the tracker, or None where this batch is not tracked.
        """
        self._active.add(phase)
        key = (phase, copy)
        if size <= GROWTH * self._sizes.get(key, 0):
            yield None
            return
        self._sizes[key] = size
        with StorageTracker(held(), vocab_size) as tracker:
            yield tracker
            # What belongs to two kinds is the first's, as `actors.memory` counts.
            for kind, tensors in reversed(held().items()):
                tracker.name(kind, tensors)
        at_peak = tracker.at_peak()
        at_peak.pop(BORROWED, None)
        self._peaks.setdefault(phase, {})[copy] = at_peak

    def note(self, copy: str, kinds: Mapping[str, int]) -> None:
        """Count what a copy holds on the device now, before it leaves within the phase."""
        noted = self._noted.setdefault(copy, {})
        for kind, size in kinds.items():
            noted[kind] = max(size, noted.get(kind, 0))

    def read(
        self,
        phase: str,
        held: Mapping[str, Mapping[str, int]],
        parked: Mapping[str, Mapping[str, int]] | None = None,
        *,
        unmapped: Mapping[str, Mapping[str, int]] | None = None,
        work: str = "",
    ) -> Reading:
        """The phase that ends now; the next one starts with fresh peaks.

        Args:
            phase: its name.
            held: copy -> kind -> bytes on the device that stay.
            parked: copy -> kind -> bytes in host memory that stay.
            unmapped: copy -> kind -> bytes that a GPU's allocator counts although they are away.
            work: the phase that the process' work is tracked as, where it may be done in another,
                in which its peak is then counted; by default this one.
        """
        work = work or phase
        copies = {copy: dict(kinds) for copy, kinds in held.items()}
        parked, unmapped = parked or {}, unmapped or {}
        noted, self._noted = self._noted, {}
        for copy, kinds in noted.items():
            copies[copy] = dict(kinds) | copies.get(copy, {})
        alone: frozenset[str] = frozenset()
        if work in self._active and work in self._peaks:
            # Copies of one process work one after another: the one that adds most set its peak.
            copy, at_peak = max(
                self._peaks[work].items(),
                key=lambda item: sum(item[1].values()) - sum(copies.get(item[0], {}).values()),
            )
            if copy in copies:
                away = parked.get(copy, {})
                for kind, size in at_peak.items():
                    if kind not in away:
                        copies[copy][kind] = max(size, copies[copy].get(kind, 0))
            elif copy in parked:
                copies[copy], alone = dict(at_peak), frozenset({copy})
            else:  # it was there for this phase only
                copies[copy] = dict(at_peak)
        self._active.clear()
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        reading = (
            _on_gpu(copies, parked, unmapped, noted)
            if on_gpu
            else self._on_cpu(copies, held, parked)
        )
        reading = replace(reading, alone=alone)
        _reset_peaks()
        return reading

    def _on_cpu(
        self,
        copies: dict[str, dict[str, int]],
        held: Mapping[str, Mapping[str, int]],
        parked: Mapping[str, Mapping[str, int]],
    ) -> Reading:
        if self._unattributed is None and (held or parked):
            claimed = sum(sum(kinds.values()) for kinds in (*held.values(), *parked.values()))
            packed = sum(kinds.get("packed_weights", 0) for kinds in held.values())
            self._unattributed = max(0, storage_bytes(live_tensors()) - claimed + packed)
        copies["process"] = {"unattributed": self._unattributed or 0}
        tensors = sum(sum(kinds.values()) for kinds in (*copies.values(), *parked.values()))
        return Reading(
            copies=copies,
            parked={copy: dict(kinds) for copy, kinds in parked.items()},
            runtime=max(0, resident_peak() - tensors),
            source="storages",
        )


def _on_gpu(
    copies: dict[str, dict[str, int]],
    parked: Mapping[str, Mapping[str, int]],
    unmapped: Mapping[str, Mapping[str, int]],
    noted: Mapping[str, Mapping[str, int]],
) -> Reading:
    """Make the rows add up to the allocator's maximum: what no copy claims is `unattributed`, and
    below 0 where copies claim more than the allocator ever counted.

    What is unmapped is in the allocator's numbers all the time; it is taken out of them, unless it
    was there within the phase.
    """
    away = sum(sum(kinds.values()) for kinds in unmapped.values())
    returned = sum(
        size
        for copy, kinds in unmapped.items()
        for kind, size in kinds.items()
        if kind in noted.get(copy, {})
    )
    most = torch.cuda.max_memory_allocated() - away + returned
    reserved = torch.cuda.max_memory_reserved() - away + returned
    known = sum(sum(kinds.values()) for kinds in copies.values())
    copies["process"] = {"unattributed": most - known, "allocator_slack": reserved - most}
    # The driver counts what is there now: memory may have been given back since the peak.
    counted, kept = _nvml_bytes(), torch.cuda.memory_reserved() - away
    return Reading(
        copies=copies,
        parked={copy: dict(kinds) for copy, kinds in parked.items()},
        runtime=None if counted is None else max(0, counted - kept),
        source="allocator",
    )


def _nvml_bytes() -> int | None:
    """Bytes of this process on its GPU as the driver counts them, CUDA context included; None where
    it does not tell: in some containers it knows the process by another number.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(
            "GPU-" + str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        )
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    return next((p.usedGpuMemory for p in processes if p.pid == os.getpid()), None)


def resident_peak() -> int:
    """Largest resident set of this process since `_reset_peaks`, bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peaks() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not permitted in some containers: the peak is then the process's whole life's
        return
