"""What brings a new process to where the one before it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Call:
    """A call and what it was given."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Recipe:
    """The state of one process, as the calls that lead to it."""

    load: Callable[[], Call] | None = None
    """Makes engine, judge or copy; None where nothing is loaded."""
    weights: Callable[[], Call] | None = None
    """Brings the weights that are not those of its folder any more, asked for when they are needed:
    keeping them would be one more copy of the model."""
    place: str | None = None
    """The last of `sleep`, `wake_up`, `park` and `wake`."""

    def note(self, call: Call) -> None:
        """A call was answered; keep it if it changed where the process is."""
        if call.name == "load":
            self.load, self.weights, self.place = lambda: call, None, None
        elif call.name == "unload":
            self.load, self.weights, self.place = None, None, None
        elif call.name in ("sleep", "wake_up", "park", "wake"):
            self.place = call.name

    def calls(self, before: str) -> Iterator[Call]:
        """What a new process is asked, in order, before the call that is done again."""
        if self.load is None or before == "load":
            return
        yield self.load()
        if self.weights is not None and before != "update_weights":
            if self.place in ("sleep", "wake_up"):
                yield Call("wake_up")
            yield self.weights()
        if self.place is not None and before != self.place:
            yield Call(self.place)
