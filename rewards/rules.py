"""Judges without a model: a user's Python function, and chance (the floor of every comparison)."""

from __future__ import annotations

import hashlib
import importlib
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from rewards.base import JudgeItem, Judgement
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.records import Critique, Finding, FindingKind, Verdict


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
        raise UserError(
            f"judge {reference!r}: {error}; run from the folder that holds it, or install it"
        ) from None
    except AttributeError:
        raise UserError(f"judge {reference!r}: {module_name} has no {function_name}") from None
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything
        raise UserError(
            f"judge {reference!r}: importing {module_name} raised {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from None
    if not callable(function):
        raise UserError(f"judge {reference!r}: not a function")
    return function  # type: ignore[no-any-return]


class FunctionJudge:
    """Calls `function(prompt=str, response=str, images=[PIL], sample=Sample)`.

    It returns a number, or a mapping with `score` and, for nSFT, `critique` (text) and `findings`:
    mappings with `claim`, `verdict` (ok, bad, missing, absent) and, if known, `kind`,
    `correction`, `span` (start and end, characters of the response) and `severity`. What it raises,
    and a score that is not finite, is that item's failure.
    """

    def __init__(self, reference: str, image_root: str):
        self.name = reference
        self._function = load_function(reference)
        self._store = ImageStore(image_root)

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """One call of the function per item."""
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
            return _judgement(value)
        except Exception as error:  # noqa: BLE001 - a user's function may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return Judgement(failure=f"{self.name} raised {reason[:200]}")


def _judgement(value: Any) -> Judgement:
    """A function's result; a score that is not finite is left to `rewards.base.scored`."""
    if not isinstance(value, Mapping):
        return Judgement(score=float(value))
    findings = []
    for given in value.get("findings") or ():
        span = given.get("span")
        finding = Finding(**(given | {"span": None if span is None else tuple(span)}))
        for name, allowed in (("verdict", Verdict), ("kind", FindingKind)):
            if getattr(finding, name) not in get_args(allowed):
                raise ValueError(
                    f"{name} {getattr(finding, name)!r}; use {', '.join(get_args(allowed))}"
                )
        findings.append(finding)
    text = value.get("critique")
    critique = None
    if text or findings:
        critique = Critique(text=str(text or ""), findings=tuple(findings))
    return Judgement(score=float(value["score"]), critique=critique)


class RandomJudge:
    """Scores drawn from a standard normal, fixed by seed, rollout and text."""

    name = "random"

    def __init__(self, seed: int):
        self.seed = seed

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """One random score per item."""
        results = []
        for item in items:
            key = f"{self.seed}/{item.rollout.id}/{item.rollout.text}".encode()
            chance = random.Random(hashlib.sha256(key).digest())
            results.append(Judgement(score=chance.gauss(0.0, 1.0)))
        return results
