"""Critiques of the drawn world: written from ground truth, parsed from a judge's text.

A critique reasons before it judges: for every mention in a caption, in order, it repeats the claim,
says what is really at that place, and gives its verdict, on the color first; before it judges an
answer it lists what is in the image and says what the answer should have been. So every word
follows from the one just written and one a few words before, which a model of a million parameters
learns in minutes; comparing with words a sentence away, or two earlier words, it did not. A right
"yes" or "no" comes one word after what was asked, as in the question itself, which it helps learn.
Grammar, one space between words:

    critique := item (" " item)* | "image" (" " POSITION COLOR SHAPE)+ " . " answer
    item     := POSITION CLAIM COLOR SAME SHAPE ("ok" | "bad" | "again")    "again": claimed before
              | POSITION CLAIM "nothing no there bad"
              | "nowhere" CLAIM "bad"           a mention without a place
              | "missing" POSITION COLOR SHAPE  a place with an object that no mention is about
    CLAIM    := COLOR SHAPE
    SAME     := "yes" | "no"                    whether the color is the claimed one
    answer   := COLOR SHAPE SAID RIGHT ("ok" | "bad")           of "is there a COLOR SHAPE ?"
              | asked SAID asked found RIGHT ("ok" | "bad")     of other questions
    asked    := COLOR SHAPE                     of "where is the ... ?"
              | POSITION                        of "what color is the SHAPE at POSITION ?"
              | SHAPES                          of "how many SHAPES are there ?"
    found    := POSITION*                       only of "how many": where they are
    SAID     := the answer, or "nothing" for a response that is not one word of this world
    RIGHT    := the answer that was right

The n-th item is about the n-th mention, whatever claim it repeats: a small judge miscopies some.
The objects listed after "image" are findings too (verdict ok): the critique affirms them. A bad
claim is wrong at its place and may be true of another, where the critique then names it. Findings
with "again" are of kind count and those with "nowhere" of kind relation, for they do not say that
there is no such object.
"""

from __future__ import annotations

from typing import Any

from trainers.data.records import Critique, Finding, FindingKind, Verdict
from trainers.data.scenes import COLORS, NUMBERS, POSITIONS, SHAPES, parse_mentions, plural

ANSWER_WORDS = frozenset((*COLORS, *NUMBERS, *POSITIONS, "yes", "no"))
PLURALS = frozenset(plural(shape) for shape in SHAPES)
CRITIQUE_REQUEST = "critique the answer ."
"""The user turn after a response that asks the judge for its critique."""


def write_critique(
    truth: dict[str, Any], prompt_kind: str, prompt_text: str, response: str
) -> Critique:
    """The perfect critique of `response`, from the ground truth of its sample."""
    if prompt_kind == "describe":
        text = _caption_critique(truth, response)
    elif prompt_kind in ("exists", "question"):
        text = _listing(truth) + _answer(truth, prompt_text, response)
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
        return (*seen, _parse_answer(words[end + 1 :], text, response))
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
    if words[0] == "nowhere" and _is_type(words[1:3]) and words[3:4] == ["bad"]:
        return Finding(claim=claim, verdict="bad", kind="relation"), 4
    place, truth, verdicts = words[0], words[3:7:2], words[4:7:2]
    if place in POSITIONS and _is_type(words[1:3]):
        if truth == ["nothing", "there"] and verdicts == ["no", "bad"]:
            return Finding(claim=claim, verdict="bad"), 7
        if _is_type(truth) and verdicts == ["yes", "ok"]:
            return Finding(claim=claim, verdict="ok"), 7
        if _is_type(truth) and verdicts == ["yes", "again"]:
            return Finding(claim=claim, verdict="bad", kind="count"), 7
        if _is_type(truth) and verdicts in (["yes", "bad"], ["no", "bad"]):
            return Finding(claim=claim, verdict="bad", correction=" ".join(truth)), 7
    raise ValueError(f"malformed critique at {' '.join(words[:7])!r} in {text!r}")


def _parse_answer(words: list[str], text: str, response: str) -> Finding:
    length = 2 if _is_type(words[:2]) else 1
    asked, rest = words[:length], words[length:]
    copied, *subject, right, verdict = rest if len(rest) > 2 else [""] * 3
    kind = _answer_kind(subject or asked, right)
    # Only for yes or no is what was asked not repeated.
    repeated = [] if kind == "existence" else asked
    if (
        kind is None
        or subject[:length] != repeated
        or copied not in (*ANSWER_WORDS, "nothing")
        or verdict not in ("ok", "bad")
    ):
        raise ValueError(f"malformed verdict {' '.join(words)!r} in {text!r}")
    said = response if response in ANSWER_WORDS else "nothing"
    if kind == "existence":
        if said not in ("yes", "no"):
            # No question "is there a red ?" may come of it, hence not of kind existence.
            return Finding(claim=said, verdict="bad", kind="text", correction=right)
        sound, wrong = _EXISTENCE[right]
        return Finding(claim=" ".join(asked), verdict=sound if verdict == "ok" else wrong)
    if verdict == "ok":
        return Finding(claim=right, verdict="ok", kind=kind)
    return Finding(claim=said, verdict="bad", kind=kind, correction=right)


_EXISTENCE: dict[str, tuple[Verdict, Verdict]] = {"yes": ("ok", "missing"), "no": ("absent", "bad")}
"""Right answer -> the finding's verdict if the response is right, and if it is wrong."""


def _answer_kind(subject: list[str], right: str) -> FindingKind | None:
    """What was asked; None if no question has this subject and this right answer."""
    if not subject:
        return None
    if _is_type(subject):
        return "existence" if right in _EXISTENCE else "relation" if right in POSITIONS else None
    first, *rest = subject
    if first in POSITIONS and not rest and right in COLORS:
        return "attribute"
    return "count" if first in PLURALS and {*rest} <= {*POSITIONS} and right in NUMBERS else None


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
        claim = f"{mention.color} {mention.shape}"
        if place is None:
            items.append(f"nowhere {claim} bad")
            continue
        mentioned.add(place)
        found = there.get(place)
        color, shape = found or ("nothing", "there")
        same = "yes" if color == mention.color else "no"
        verdict = "bad" if found != mention.type else "again" if place in right else "ok"
        items.append(f"{place} {claim} {color} {same} {shape} {verdict}")
        if found == mention.type:
            right.add(place)
    for color, shape, position in truth["objects"]:  # in reading order
        if position not in mentioned:
            items.append(f"missing {position} {color} {shape}")
    return " ".join(items)


def _answer(truth: dict[str, Any], prompt_text: str, response: str) -> str:
    right = truth["answer"]
    mentions = parse_mentions(prompt_text)
    found: list[str] = []
    if mentions:
        asked = [*mentions[0].type]
    else:
        names = POSITIONS if right in COLORS else PLURALS
        asked = [word for word in prompt_text.split() if word in names]
        found = [place for _, shape, place in truth["objects"] if plural(shape) in asked]
    said = response if response in ANSWER_WORDS else "nothing"
    verdict = "ok" if response == right else "bad"
    repeated = [] if right in _EXISTENCE else [*asked, *found]
    return " ".join([*asked, said, *repeated, right, verdict])
