"""A weighted sum of judges, with the breakdown of every part."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.base import Judge, JudgeItem, Judgement


class SumJudge:
    """score = sum over parts of weight * score of the part.

    An item that fails in one part fails. Components: each part's own score under the part's name
    (numbered if two have the same one), and its components after a slash. The critique is that of
    the first part that writes one.
    """

    def __init__(self, parts: Sequence[tuple[float, Judge]]):
        names = [judge.name for _, judge in parts]
        self.name = "sum(" + ", ".join(f"{weight:g} {judge.name}" for weight, judge in parts) + ")"
        self._parts = [
            (
                weight,
                f"{name}#{1 + names[:index].count(name)}" if names.count(name) > 1 else name,
                j,
            )
            for index, (name, (weight, j)) in enumerate(zip(names, parts, strict=True))
        ]

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """One judgement per item."""
        columns = [judge.judge(items) for _, _, judge in self._parts]
        return [self._add(row) for row in zip(*columns, strict=True)]

    def _add(self, row: Sequence[Judgement]) -> Judgement:
        total, components = 0.0, {}
        for (weight, name, _), judgement in zip(self._parts, row, strict=True):
            if judgement.score is None:
                return Judgement(failure=f"{name}: {judgement.failure or 'no score'}")
            total += weight * judgement.score
            components[name] = judgement.score
            components |= {f"{name}/{key}": value for key, value in judgement.components.items()}
        critiques = (judgement.critique for judgement in row if judgement.critique is not None)
        return Judgement(score=total, components=components, critique=next(critiques, None))
