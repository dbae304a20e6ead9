"""What of a call goes to which of several rollout engines, and how their results become one.

Prompts are dealt in order, so that answers come back in prompt order; all else goes to every
engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from cluster.recipe import Call


def dealt(call: Call, number: int, *, one_seed: bool = False) -> list[Call | None]:
    """`call` as each of `number` engines is to be asked; None for one that has nothing to do.

    With `one_seed` each answer draws its own chance, so that parts need no seeds of their own.
    Limiting case: one engine gets the call as it is.
    """
    if number == 1 or call.name not in DEALT:
        return [call] * number
    items, rest = call.args[0], call.args[1:]
    parts = contiguous(items, number)
    return [
        None
        if not part and index
        else Call(call.name, (part, *seeded(rest, seed_of)), seeded(call.kwargs, seed_of))
        for index, part in enumerate(parts)
        for seed_of in [0 if one_seed else index]
    ]


def joined(name: str, results: Sequence[Any]) -> Any:
    """The engines' results as one engine would have given them."""
    return JOINED[name](results)


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
    "reach": first,
    "forget_requests": first,
}
"""Call -> how the engines' results become one."""
