"""Judges without a model: a user's Python function, and chance (the floor of every comparison)."""

from __future__ import annotations

import hashlib
import importlib
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rewards.base import JudgeItem, Judgement
from trainers.data.errors import UserError
from trainers.data.images import ImageStore


def load_function(reference: str) -> Callable[..., Any]:
    """Import `module:function`; the working directory is searched too.

    Raises:
        UserError: the module or the function is not there, or is not callable.
    """
    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name:
        raise UserError(
            f"judge {reference!r}: give a critique model's folder or a function as module:function"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as error:
        raise UserError(f"judge {reference!r}: {error}; run from the folder that holds it") from None
    except AttributeError:
        raise UserError(f"judge {reference!r}: {module_name} has no {function_name}") from None
    if not callable(function):
        raise UserError(f"judge {reference!r}: not a function")
    return function  # type: ignore[no-any-return]


class FunctionJudge:
    """Calls `function(prompt=str, response=str, images=[PIL], sample=Sample) -> float`.

    What it raises, and a result that is not a finite number, is that item's failure.
    """

    def __init__(self, reference: str, image_root: str):
        self.name = reference
        self._function = load_function(reference)
        self._store = ImageStore(image_root)

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        return [self._one(item) for item in items]

    def _one(self, item: JudgeItem) -> Judgement:
        sample = item.sample
        try:
            value = self._function(
                prompt=sample.prompt[-1].text,
                response=item.rollout.text,
                images=[self._store.get(reference) for reference in sample.images],
                sample=sample,
            )
            return Judgement(score=float(value))
        except Exception as error:  # a user's function may raise anything; it is reported
            return Judgement(failure=f"{self.name} raised {type(error).__name__}: {error}")


class RandomJudge:
    """Scores drawn from a standard normal, fixed by seed, rollout and text."""

    name = "random"

    def __init__(self, seed: int):
        self.seed = seed

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        results = []
        for item in items:
            key = f"{self.seed}/{item.rollout.id}/{item.rollout.text}".encode()
            chance = random.Random(hashlib.sha256(key).digest())
            results.append(Judgement(score=chance.gauss(0.0, 1.0)))
        return results
