"""The exact splitter and converter of the drawn world: claims by its grammar, no model.

    top-left red circle .      in a caption          is there a red circle ?              yes
    yes | no                   to an existence question      the question itself          yes | no
    one word                   to any other question         the question itself          the word

The place in a caption is not tested: the world has no yes/no question about it. A one-word answer
is tested against all words of its sort (RLAIF-V only has yes/no questions).
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.asking import Failed
from rewards.base import JudgeItem
from rewards.claims import YES_NO, Claim
from trainers.data.records import FindingKind
from trainers.data.scenes import COLORS, NUMBERS, POSITIONS, exists_question, parse_mentions

SORTS: tuple[tuple[str, tuple[str, ...], FindingKind], ...] = (
    ("what color", COLORS, "attribute"),
    ("how many", NUMBERS, "count"),
    ("where is", POSITIONS, "relation"),
)
"""Start of a question, its answers, and what a wrong one is wrong about."""


def drawn_claims(items: Sequence[JudgeItem]) -> list[tuple[Claim, ...] | Failed]:
    """The claims of every response; a failure where the text is not of this world's grammar."""
    return [_claims(item.sample.prompt[-1].text, item.rollout.text) for item in items]


def _claims(prompt: str, response: str) -> tuple[Claim, ...] | Failed:
    text = response.strip()
    span = (0, len(response)) if response else None
    if prompt.startswith("is there a "):
        mentions = parse_mentions(prompt)
        if text not in YES_NO or len(mentions) != 1:
            return Failed(f"{text[:40]!r} is not an answer to {prompt!r}")
        name = " ".join(mentions[0].type)
        return (Claim(text=name, question=prompt, stated=text, span=span),)
    for start, words, kind in SORTS:
        if prompt.startswith(start):
            if text not in words:
                return Failed(f"{text[:40]!r} is not an answer to {prompt!r}")
            return (
                Claim(text=text, question=prompt, stated=text, options=words, kind=kind, span=span),
            )
    found = tuple(
        Claim(
            text=" ".join(mention.type),
            question=exists_question(mention.type),
            span=(mention.start, mention.end),
        )
        for mention in parse_mentions(response)
    )
    return found or Failed("the answer makes no claim")
