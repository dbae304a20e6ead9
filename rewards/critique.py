"""Critiques of the drawn world: written from ground truth, parsed from a judge's text.

A critique reasons before it judges: for every mention in a caption, in order, it first says what
is really at that place, and before it judges an answer it lists what is in the image. A model that
can describe an image can then check a claim in one more step. It does not repeat the claim, which a
small model miscopies: the n-th item is about the n-th mention. Grammar, one space between words:

    critique := item (" " item)* | "image" (" " POSITION COLOR SHAPE)+ " . " answer
    item     := POSITION "is" COLOR SHAPE ("ok" | "bad")    what is at a mention's place
              | POSITION "is nothing bad"       nothing is there
              | POSITION "again bad"            the same object mentioned a second time
              | "nowhere bad"                   a mention without a place
              | "missing" POSITION COLOR SHAPE  a place with an object that no mention is about
    answer   := COLOR SHAPE ("ok" | "bad")      "yes" to "is there a COLOR SHAPE ?"
              | "missing" COLOR SHAPE           denied, although it is there
              | "no" COLOR SHAPE "ok"           rightly denied
              | WORD "ok"                       a right one-word answer
              | WORD "bad" WORD                 a wrong one-word answer and the right one
    WORD     := any answer word, or "nothing" for a response that is not one word

The objects listed after "image" are findings too (verdict ok): the critique affirms them. A bad
claim is wrong at its place and may be true of another, where the critique then names it. Findings
with "again" are of kind count and those with "nowhere" of kind relation, for they do not say that
there is no such object.
"""

from __future__ import annotations

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
        text = _caption_critique(truth, response)
    elif prompt_kind == "exists":
        text = _listing(truth) + _exists_verdict(truth["answer"], prompt_text, response)
    elif prompt_kind == "question":
        text = _listing(truth) + _answer_verdict(truth["answer"], response)
    else:
        raise ValueError(f"unknown prompt kind {prompt_kind!r}; use describe, question or exists")
    return Critique(text=text, findings=parse_critique(text, response))


def quality(truth: dict[str, Any], prompt_kind: str, prompt_text: str, response: str) -> float:
    """Minus the number of wrong and missing claims: 0 for a perfect response."""
    findings = write_critique(truth, prompt_kind, prompt_text, response).findings
    return -float(sum(finding.verdict in ("bad", "missing") for finding in findings))


def parse_critique(text: str, response: str) -> tuple[Finding, ...]:
    """The findings of a critique of `response`; ValueError if it is not of the grammar above, or
    if it has not one item per mention in the response.
    """
    words = text.split()
    if words[:1] == ["image"] and "." in words:
        end = words.index(".")
        listed = [words[i : i + 3] for i in range(1, end, 3)]
        if not listed or not all(_is_object(item) for item in listed):
            raise ValueError(f"malformed list of objects in {text!r}")
        seen = tuple(Finding(claim=" ".join(item[1:]), verdict="ok") for item in listed)
        return (*seen, _parse_answer(words[end + 1 :], text))
    findings: list[Finding] = []
    claims = [f"{mention.color} {mention.shape}" for mention in parse_mentions(response)]
    while words and words[0] != "missing":
        if not claims:
            raise ValueError(f"more items than mentions in {text!r}")
        finding, length = _read_item(claims.pop(0), words, text)
        findings.append(finding)
        words = words[length:]
    if claims:
        raise ValueError(f"fewer items than mentions in {text!r}")
    while words:
        if words[0] != "missing" or not _is_object(words[1:4]):
            raise ValueError(f"malformed critique at {' '.join(words[:4])!r} in {text!r}")
        findings.append(Finding(claim=" ".join(words[2:4]), verdict="missing"))
        words = words[4:]
    if not findings:
        raise ValueError("empty critique")
    return tuple(findings)


def _is_type(words: list[str]) -> bool:
    return len(words) == 2 and words[0] in COLORS and words[1] in SHAPES


def _is_object(words: list[str]) -> bool:
    return len(words) == 3 and words[0] in POSITIONS and _is_type(words[1:])


def _read_item(claim: str, words: list[str], text: str) -> tuple[Finding, int]:
    """The item on `claim` at the start of `words`, and how many words it takes."""
    if words[:2] == ["nowhere", "bad"]:
        return Finding(claim=claim, verdict="bad", kind="relation"), 2
    if words[0] in POSITIONS:
        if words[1:3] == ["again", "bad"]:
            return Finding(claim=claim, verdict="bad", kind="count"), 3
        if words[1:4] == ["is", "nothing", "bad"]:
            return Finding(claim=claim, verdict="bad"), 4
        if words[1:2] == ["is"] and _is_type(words[2:4]):
            there = " ".join(words[2:4])
            if words[4:5] == ["ok"]:
                return Finding(claim=claim, verdict="ok"), 5
            if words[4:5] == ["bad"]:
                return Finding(claim=claim, verdict="bad", correction=there), 5
    raise ValueError(f"malformed critique at {' '.join(words[:5])!r} in {text!r}")


def _parse_answer(words: list[str], text: str) -> Finding:
    if len(words) == 3 and _is_type(words[:2]) and words[2] in ("ok", "bad"):
        return Finding(claim=" ".join(words[:2]), verdict="ok" if words[2] == "ok" else "bad")
    if len(words) == 3 and words[0] == "missing" and _is_type(words[1:]):
        return Finding(claim=" ".join(words[1:]), verdict="missing")
    if len(words) == 4 and words[0] == "no" and _is_type(words[1:3]) and words[3] == "ok":
        return Finding(claim=" ".join(words[1:3]), verdict="absent")
    if len(words) == 2 and words[0] in ANSWER_WORDS and words[1] == "ok":
        return Finding(claim=words[0], verdict="ok", kind=_answer_kind(words[0]))
    known = len(words) == 3 and (words[0] in ANSWER_WORDS or words[0] == "nothing")
    if known and words[1] == "bad" and words[2] in ANSWER_WORDS:
        right = words[2]
        return Finding(claim=words[0], verdict="bad", kind=_answer_kind(right), correction=right)
    raise ValueError(f"malformed verdict {' '.join(words)!r} in {text!r}")


def _listing(truth: dict[str, Any]) -> str:
    objects = (f"{position} {color} {shape}" for color, shape, position in truth["objects"])
    return "image " + " ".join(objects) + " . "


def _caption_critique(truth: dict[str, Any], response: str) -> str:
    there = {position: (color, shape) for color, shape, position in truth["objects"]}
    items = []
    mentioned: set[str | None] = set()
    right: set[str] = set()
    for mention in parse_mentions(response):
        place = mention.position
        if place is None:
            items.append("nowhere bad")
            continue
        mentioned.add(place)
        found = there.get(place)
        if found == mention.type and place in right:
            items.append(f"{place} again bad")
        else:
            verdict = "ok" if found == mention.type else "bad"
            items.append(f"{place} is {' '.join(found) if found else 'nothing'} {verdict}")
        if found == mention.type:
            right.add(place)
    for color, shape, position in truth["objects"]:  # in reading order
        if position not in mentioned:
            items.append(f"missing {position} {color} {shape}")
    return " ".join(items)


def _exists_verdict(answer: str, prompt_text: str, response: str) -> str:
    (asked,) = parse_mentions(prompt_text)
    claim = f"{asked.color} {asked.shape}"
    if response == "yes":
        return f"{claim} {'ok' if answer == 'yes' else 'bad'}"
    if response == "no":
        return f"missing {claim}" if answer == "yes" else f"no {claim} ok"
    return _answer_verdict(answer, response)


def _answer_verdict(answer: str, response: str) -> str:
    if response == answer:
        return f"{answer} ok"
    return f"{response if response in ANSWER_WORDS else 'nothing'} bad {answer}"


def _answer_kind(answer: str) -> FindingKind:
    if answer in COLORS:
        return "attribute"
    if answer in NUMBERS:
        return "count"
    return "relation" if answer in POSITIONS else "text"  # "yes" and "no" name nothing
