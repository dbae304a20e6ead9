"""Critiques of the drawn world: written from ground truth, parsed from a judge's text.

A critique goes through the claims of a response in order and says what is missing. Grammar, with
one space between words:

    critique := item (" " item)*
    item     := COLOR SHAPE ("ok" | "bad")      a mention, or "yes" to "is there a COLOR SHAPE ?"
              | "missing" COLOR SHAPE           not mentioned, or denied, although it is there
              | "no" COLOR SHAPE "ok"           rightly denied
              | WORD "ok"                       a right one-word answer
              | WORD "bad" WORD                 a wrong one-word answer and the right one
    WORD     := any answer word, or "nothing" for a response that is not one word

Claims are matched with the scene as a multiset of (color, shape): a repeated object is wrong unless
there are two of it. Positions in captions are not judged.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from trainers.data.records import Critique, Finding, FindingKind
from trainers.data.scenes import COLORS, NUMBERS, POSITIONS, SHAPES, parse_mentions

ANSWER_WORDS = frozenset((*COLORS, *NUMBERS, *POSITIONS, "yes", "no"))
CRITIQUE_REQUEST = "critique the answer ."
"""The user turn after a response that asks the judge for its critique."""


def write_critique(
    truth: dict[str, Any], prompt_kind: str, prompt_text: str, response: str
) -> Critique:
    """The perfect critique of `response`, from the ground truth of its sample."""
    if prompt_kind == "describe":
        findings = _caption_findings(truth, response)
    elif prompt_kind == "exists":
        findings = (_exists_finding(truth["answer"], prompt_text, response),)
    elif prompt_kind == "question":
        findings = (_answer_finding(truth["answer"], response),)
    else:
        raise ValueError(f"unknown prompt kind {prompt_kind!r}; use describe, question or exists")
    return Critique(text=" ".join(map(_item_text, findings)), findings=findings)


def quality(truth: dict[str, Any], prompt_kind: str, prompt_text: str, response: str) -> float:
    """Minus the number of wrong and missing claims: 0 for a perfect response."""
    findings = write_critique(truth, prompt_kind, prompt_text, response).findings
    return -float(sum(finding.verdict in ("bad", "missing") for finding in findings))


def parse_critique(text: str) -> tuple[Finding, ...]:
    """The findings of a critique in the grammar above; ValueError for anything else."""
    words = text.split()
    if not words:
        raise ValueError("empty critique")
    findings: list[Finding] = []
    while words:
        finding, length = _read_item(words, text)
        findings.append(finding)
        words = words[length:]
    return tuple(findings)


def _read_item(words: list[str], text: str) -> tuple[Finding, int]:
    """The item at the start of `words`, and how many words it takes."""
    first, rest = words[0], words[1:]
    if first in COLORS and _is_one_of(rest[:1], SHAPES) and _is_one_of(rest[1:2], ("ok", "bad")):
        return Finding(claim=f"{first} {rest[0]}", verdict="ok" if rest[1] == "ok" else "bad"), 3
    typed = _is_one_of(rest[:1], COLORS) and _is_one_of(rest[1:2], SHAPES)
    if first == "missing" and typed:
        return Finding(claim=" ".join(rest[:2]), verdict="missing"), 3
    if first == "no" and typed and rest[2:3] == ["ok"]:
        return Finding(claim=" ".join(rest[:2]), verdict="absent"), 4
    if first in ANSWER_WORDS and rest[:1] == ["ok"]:
        return Finding(claim=first, verdict="ok", kind=_answer_kind(first)), 2
    known = first in ANSWER_WORDS or first == "nothing"
    if known and rest[:1] == ["bad"] and _is_one_of(rest[1:2], ANSWER_WORDS):
        right = rest[1]
        return Finding(claim=first, verdict="bad", kind=_answer_kind(right), correction=right), 3
    raise ValueError(f"malformed critique at {' '.join(words[:4])!r} in {text!r}")


def _is_one_of(words: list[str], allowed: tuple[str, ...] | frozenset[str]) -> bool:
    return len(words) == 1 and words[0] in allowed


def _item_text(finding: Finding) -> str:
    if finding.verdict == "missing":
        return f"missing {finding.claim}"
    if finding.verdict == "absent":
        return f"no {finding.claim} ok"
    return " ".join(filter(None, (finding.claim, finding.verdict, finding.correction)))


def _caption_findings(truth: dict[str, Any], response: str) -> tuple[Finding, ...]:
    left = Counter((color, shape) for color, shape, _ in truth["objects"])
    findings = []
    for mention in parse_mentions(response):
        found = left[mention.type] > 0
        left[mention.type] -= found
        claim = f"{mention.color} {mention.shape}"
        findings.append(Finding(claim=claim, verdict="ok" if found else "bad"))
    for color, shape, _ in truth["objects"]:  # in reading order
        if left[color, shape] > 0:
            left[color, shape] -= 1
            findings.append(Finding(claim=f"{color} {shape}", verdict="missing"))
    return tuple(findings)


def _exists_finding(answer: str, prompt_text: str, response: str) -> Finding:
    (asked,) = parse_mentions(prompt_text)
    claim = f"{asked.color} {asked.shape}"
    if response == "yes":
        return Finding(claim=claim, verdict="ok" if answer == "yes" else "bad")
    if response == "no":
        if answer == "yes":
            return Finding(claim=claim, verdict="missing")
        return Finding(claim=claim, verdict="absent")
    return _answer_finding(answer, response)


def _answer_finding(answer: str, response: str) -> Finding:
    if response == answer:
        return Finding(claim=answer, verdict="ok", kind=_answer_kind(answer))
    claim = response if response in ANSWER_WORDS else "nothing"
    return Finding(claim=claim, verdict="bad", kind=_answer_kind(answer), correction=answer)


def _answer_kind(answer: str) -> FindingKind:
    if answer in COLORS:
        return "attribute"
    if answer in NUMBERS:
        return "count"
    return "relation" if answer in POSITIONS else "existence"
