"""What a judge that holds models offers beyond judging: memory, taking turns, sleep, an end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from actors.engine import Engine
from actors.ledger import PhaseMeter, Reading
from rewards.base import Judge, JudgeItem, Judgement

JUDGING = "judge"
"""The phase that a judge's work is tracked as."""


class ModelJudge(ABC):
    """Base of the judges that hold models in their process.

    vLLM's engines of one process share their parallel groups: closing one ends the others, so no
    engine is closed alone.
    """

    name: str
    engines: Sequence[Engine] = ()
    meter: PhaseMeter

    @abstractmethod
    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """One judgement per item, in order."""

    @abstractmethod
    def module_memory(self) -> dict[str, int]:
        """Bytes by kind of what scores outside an engine: the copy `reward`. Empty without it."""

    @property
    def parked(self) -> bool:
        """Whether the scoring modules are in host memory."""
        return False

    def park(self) -> int:
        """Move the scoring modules to host memory until `wake`. Returns the bytes moved."""
        return 0

    def wake(self) -> int:
        """Bring them back to the device, if they are parked. Returns the bytes moved."""
        return 0

    def forget_requests(self) -> None:
        """Empty the engines' caches."""
        for engine in self.engines:
            engine.memory.forget_requests()

    def sleep(self) -> int:
        """Send the engines off the device until `wake_up`. Returns the bytes moved."""
        self.meter.note("judge_engine", _sum(e.memory.on_device() for e in self.engines))
        return sum(engine.sleep() for engine in self.engines)

    def wake_up(self) -> int:
        """Bring the engines back. Returns the bytes moved."""
        return sum(engine.wake_up() for engine in self.engines)

    def memory(self) -> dict[str, dict[str, int]]:
        """Bytes by copy and kind, wherever they are: all engines are one row, `judge_engine`."""
        found = {"reward": self.module_memory()}
        found["judge_engine"] = _sum(engine.memory.everywhere() for engine in self.engines)
        return {copy: kinds for copy, kinds in found.items() if kinds}

    def end_phase(self, phase: str) -> Reading:
        """The memory in the phase that ends now, for the ledger. What was judged since the last one
        counts to it: slices are judged while the engine answers (`overlap.judge_slices`).
        """
        memories = [engine.memory for engine in self.engines]
        modules = {"reward": kinds} if (kinds := self.module_memory()) else {}
        if not memories:
            return self.meter.read(
                phase,
                {} if self.parked else modules,
                modules if self.parked else {},
                work=JUDGING,
            )
        return self.meter.read(
            phase,
            {
                **({} if self.parked else modules),
                "judge_engine": _sum(memory.on_device() for memory in memories),
            },
            {
                **(modules if self.parked else {}),
                "judge_engine": _sum(memory.in_host() for memory in memories),
            },
            unmapped={"judge_engine": _sum(memory.unmapped() for memory in memories)},
            work=JUDGING,
        )

    def close(self) -> None:
        """Shut all engines down; the judge is not used after it."""
        for engine in self.engines:
            engine.close()


class HostedJudge(ModelJudge):
    """A judge over engines, and over other judges with models: all of them are one to the outside.

    Args:
        engines: its own, beside those of `parts`.
    """

    def __init__(self, judge: Judge, engines: Sequence[Engine], parts: Sequence[ModelJudge] = ()):
        self.name = judge.name
        self._judge, self._parts = judge, parts
        self.engines = [*engines, *(engine for part in parts for engine in part.engines)]
        self.meter = PhaseMeter()
        for part in parts:
            part.meter = self.meter  # what they measure at work is one reading

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """See the base class."""
        return self._judge.judge(items)

    def module_memory(self) -> dict[str, int]:
        """See the base class."""
        return _sum(part.module_memory() for part in self._parts)

    @property
    def parked(self) -> bool:
        """See the base class; the parts move together."""
        return any(part.parked for part in self._parts)

    def park(self) -> int:
        """See the base class."""
        return sum(part.park() for part in self._parts)

    def wake(self) -> int:
        """See the base class."""
        return sum(part.wake() for part in self._parts)


def _sum(readings: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Bytes by kind, added up."""
    total: dict[str, int] = {}
    for reading in readings:
        for kind, size in reading.items():
            total[kind] = total.get(kind, 0) + size
    return total
