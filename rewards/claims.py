"""Divide and conquer: the fewer of its claims are denied, the better an answer.

RLAIF-V (arXiv 2405.17220, `llama3_8b_inference.py` and `pair_construction.py`): split the answer
into claims, turn each into a question, ask a VLM that sees the image, and compare the
probabilities of its first token:

    S(y) = - #{claims with p(denial) > p(claim)}            0: nothing denied; never above 0

Only a denial counts: a labeler that is equally unsure of both denies nothing. An answer without
claims has no score (a failure), as in the paper, where it drops out. S favours short answers:
use it with `method.pairs.length_balance`, which is part of the paper's recipe.

Ours: a claim that is made twice counts twice and is asked once (there the pair is dropped); every
claim becomes a finding, so that nSFT has something to correct; and a question may have other
answers than yes and no, for claims that the labeler's language has no yes/no question for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rewards.asking import Choose, Failed, Prompt
from rewards.base import JudgeItem, Judgement
from trainers.data.records import Critique, Finding, FindingKind

SPELLINGS: dict[str, tuple[str, ...]] = {"yes": ("yes", "Yes"), "no": ("no", "No")}
"""Words whose probabilities are added up; any other word stands for itself."""
YES_NO = ("yes", "no")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One statement of a response, and the question that tests it.

    Example: `Claim(text="red circle", question="is there a red circle ?")`
    """

    text: str
    """As a finding names it."""
    question: str
    """Put to the labeler, with the image."""
    stated: str = "yes"
    """The answer that the response's claim amounts to."""
    options: tuple[str, ...] = YES_NO
    """All answers that come into question, `stated` among them."""
    kind: FindingKind = "existence"
    span: tuple[int, int] | None = None


Split = Callable[[Sequence[JudgeItem]], list[tuple[Claim, ...] | Failed]]
"""The claims of each response, questions included; a failure where they cannot be told."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The labeler on one claim."""

    denied: bool
    best_other: str
    """The likeliest answer but the stated one."""


class ClaimsJudge:
    """Scores by what a labeler denies; see the module's head."""

    name = "claims"

    def __init__(self, split: Split, choose: Choose):
        self._split, self._choose = split, choose

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """One judgement per item; claims and questions that fail are the item's failure."""
        claims = self._split(items)
        verdicts = self._ask(items, claims)
        return [
            _judgement(found, [verdicts[_key(item, claim)] for claim in found])
            if not isinstance(found, Failed)
            else Judgement(failure=f"claims: {found.reason}")
            for item, found in zip(items, claims, strict=True)
        ]

    def _ask(
        self, items: Sequence[JudgeItem], claims: Sequence[tuple[Claim, ...] | Failed]
    ) -> dict[tuple[object, ...], Verdict | Failed]:
        """Every different question to every different image once, by its set of options."""
        asked = {
            _key(item, claim): (item, claim)
            for item, found in zip(items, claims, strict=True)
            if not isinstance(found, Failed)
            for claim in found
        }
        verdicts: dict[tuple[object, ...], Verdict | Failed] = {}
        for options in {claim.options: None for _, claim in asked.values()}:
            keys = [key for key, (_, claim) in asked.items() if claim.options == options]
            prompts = [
                Prompt.of(claim.question, item.sample.images)
                for item, claim in map(asked.__getitem__, keys)
            ]
            words = [word for option in options for word in SPELLINGS.get(option, (option,))]
            for key, answer in zip(keys, self._choose(prompts, words), strict=True):
                verdicts[key] = (
                    answer if isinstance(answer, Failed) else verdict(asked[key][1], answer)
                )
        return verdicts


def verdict(claim: Claim, word_probabilities: dict[str, float]) -> Verdict:
    """Whether the labeler denies `claim`: another answer is likelier than the stated one.

    Limiting case: equal probabilities deny nothing.
    """
    by_option = {
        option: sum(word_probabilities[word] for word in SPELLINGS.get(option, (option,)))
        for option in claim.options
    }
    stated = by_option.pop(claim.stated)
    best = max(by_option, key=by_option.__getitem__)
    return Verdict(by_option[best] > stated, best)


def _key(item: JudgeItem, claim: Claim) -> tuple[object, ...]:
    return item.sample.images, claim.question, claim.stated, claim.options


def _judgement(claims: Sequence[Claim], verdicts: Sequence[Verdict | Failed]) -> Judgement:
    findings, lines = [], []
    for claim, given in zip(claims, verdicts, strict=True):
        if isinstance(given, Failed):
            return Judgement(failure=f"claims: {claim.question}: {given.reason}")
        findings.append(_finding(claim, given))
        lines.append(f"{claim.question} {given.best_other if given.denied else claim.stated}")
    denied = sum(given.denied for given in verdicts if isinstance(given, Verdict))
    return Judgement(
        score=-float(denied),
        critique=Critique(text=" ".join(lines), findings=tuple(findings)),
        components={"claims": float(len(claims)), "denied": float(denied)},
    )


_VERDICTS: dict[tuple[str, bool], Literal["ok", "bad", "absent", "missing"]] = {
    ("yes", False): "ok",
    ("yes", True): "bad",
    ("no", False): "absent",
    ("no", True): "missing",
}
"""(stated, denied) -> what that says of a claim about existence."""


def _finding(claim: Claim, given: Verdict) -> Finding:
    if claim.options == YES_NO:
        word = _VERDICTS[claim.stated, given.denied]
        return Finding(claim=claim.text, verdict=word, kind=claim.kind, span=claim.span)
    return Finding(
        claim=claim.text,
        verdict="bad" if given.denied else "ok",
        kind=claim.kind,
        correction=given.best_other if given.denied else None,
        span=claim.span,
    )
