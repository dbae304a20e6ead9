"""Several rollout engines as one: prompts are dealt to them, answers come back in prompt order.

Data parallel: every engine holds all weights, answers its part of a call's prompts and takes every
weight sync. A call gives one reference, as a single actor's does; the parts meet in a small task
and not in the driver.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import ray


class RolloutGroup:
    """Stands for one `actors.rollout.RolloutActor`: `group.generate.remote(...)` and so on."""

    def __init__(self, actors: Sequence[Any]):
        self.actors = list(actors)
        self.one_seed = False
        """Whether each answer draws its own chance, so that parts need no seeds of their own."""

    def __getattr__(self, name: str) -> Call:
        if name not in JOINED:
            raise AttributeError(f"rollout engines have no call {name!r} as a group")
        return Call(self, name)


class Call:
    """One call of the group, to be made with `remote`."""

    def __init__(self, group: RolloutGroup, name: str):
        self.group, self.name = group, name

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """A reference to what the engines' results are together."""
        if self.name in DEALT:
            results = self._deal(*args, **kwargs)
        else:
            if self.name == "load":
                self.group.one_seed = args[0].seeds == "answer"
            actors = self.group.actors
            results = [getattr(actor, self.name).remote(*args, **kwargs) for actor in actors]
        return ray.remote(num_cpus=0)(_join).remote(self.name, *results)

    def _deal(self, items: Sequence[Any], *args: Any, **kwargs: Any) -> list[Any]:
        actors = self.group.actors
        results = []
        for number, part in enumerate(contiguous(items, len(actors))):
            if not part and number:
                break
            seed_of = 0 if self.group.one_seed else number
            call = getattr(actors[number], self.name)
            results.append(call.remote(part, *seeded(args, seed_of), **seeded(kwargs, seed_of)))
        return results


def contiguous(items: Sequence[Any], number: int) -> list[Sequence[Any]]:
    """`items` in `number` parts, in order, as long as each other or one longer: 7 are 3, 2, 2."""
    short, long = divmod(len(items), number)
    starts = [part * short + min(part, long) for part in range(number + 1)]
    return [items[a:b] for a, b in pairwise(starts)]


def part_seed(seed: int, number: int) -> int:
    """The seed of a part: the first has the call's own, the others what chance makes of it, since
    an engine with equal seed and equal prompts would give equal answers.
    """
    return seed if number == 0 else random.Random(f"part-{seed}-{number}").randrange(2**31)


def seeded(arguments: Any, number: int) -> Any:
    """Arguments of a call with the seed of a part, wherever one is among them."""
    if isinstance(arguments, tuple):
        return tuple(
            replace(value, seed=part_seed(value.seed, number)) if hasattr(value, "seed") else value
            for value in arguments
        )
    if "seed" not in arguments:
        return arguments
    return {**arguments, "seed": part_seed(arguments["seed"], number)}


def _join(name: str, *results: Any) -> Any:
    return JOINED[name](results)


def chained(results: Sequence[Sequence[Any]]) -> list[Any]:
    """Lists one after another."""
    return [item for result in results for item in result]


def pairs_chained(results: Sequence[tuple[list[Any], list[Any]]]) -> tuple[list[Any], list[Any]]:
    """Rollouts and dropped samples, each in prompt order."""
    return chained([made for made, _ in results]), chained([dropped for _, dropped in results])


def equal(results: Sequence[int]) -> int:
    """The policy version that all engines are at.

    Raises:
        RuntimeError: they differ, so that one round would mix two policies.
    """
    if len(set(results)) > 1:
        raise RuntimeError(f"weight sync: engines are at versions {', '.join(map(str, results))}")
    return results[0]


def added(results: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Bytes by kind, all engines together."""
    kinds = dict.fromkeys(kind for result in results for kind in result)
    return {kind: sum(result.get(kind, 0) for result in results) for kind in kinds}


def first(results: Sequence[Any]) -> Any:
    """What is the same for all."""
    return results[0]


DEALT = ("generate", "encode_answers", "resample_segments", "choose")
"""Calls whose first argument is a list with one result for each item."""
JOINED: dict[str, Callable[[Any], Any]] = {
    "generate": pairs_chained,
    "encode_answers": pairs_chained,
    "resample_segments": pairs_chained,
    "choose": chained,
    "update_weights": equal,
    "sleep": sum,
    "wake_up": sum,
    "memory": added,
    "conditions": first,
    "load": first,
    "warm_up": first,
}
"""Call -> how the engines' results become one."""
