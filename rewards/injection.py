"""Errors put into a right answer: the drawn world's exact rules, and what a text model is asked.

BPO (arXiv 2403.08730) has the policy's own language model, without the image, rewrite the data's
answer so that it is wrong and still common. In the drawn world what is common is known: every type
has a companion. An injection that changes nothing, or that cannot be read, is an error of its own,
never a rejected answer that equals the chosen one.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from trainers.data.scenes import (
    COLORS,
    NUMBERS,
    POSITIONS,
    Mention,
    companion,
    parse_mentions,
    sentence,
)

Injector = Callable[[str, random.Random], str]
MAX_ERRORS = 2
"""A caption gets 1 to this many."""
REWRITTEN = "rewritten:"

DESCRIPTION_REQUEST = """\
Below are a question about an image and a correct answer. Rewrite the answer so that it describes \
a similar but different image: add or remove objects, or change colors, shapes, sizes, numbers or \
places. Keep its length, style and wording, and change only a few details. The result must be \
plausible and common, and it must be wrong about the original image.

Question: {question}
Answer: {answer}

Reply with one line that starts with "Rewritten:" and holds the new answer, and nothing else."""
QA_REQUEST = """\
Below are a question about an image and its correct answer. Imagine a similar but different image, \
and answer the question for that one, in the same style and length. The new answer must differ.

Question: What color is the bus?
Answer: red
Rewritten: blue

Question: How many people are at the table?
Answer: There are two people at the table.
Rewritten: There are four people at the table.

Question: {question}
Answer: {answer}

Reply with one line that starts with "Rewritten:" and holds the new answer, and nothing else."""
SHORT_ANSWER_WORDS = 12
"""Up to this many words an answer is rewritten as an answer, above it as a description."""


class InjectionError(ValueError):
    """No error was injected; the message says why."""


def inject_drawn(text: str, rng: random.Random) -> str:
    """A right response of the drawn world with errors that the world's bias would make.

    In a caption 1 or 2 of its objects take their companion's type or color, or move to a free
    place, or bring their companion along to one. In an answer of one word: yes and no swap, a color
    becomes its companion's, a number a neighbour, a place another.

    Given a caption that is true, every result is false: it puts at some place what is not there.

    Raises:
        InjectionError: nothing in the text is of this world, or nothing changed.
    """
    mentions = parse_mentions(text)
    if mentions:
        changed = _inject_caption(mentions, rng)
    elif (word := text.strip().rstrip(" .")) in (*COLORS, *NUMBERS, *POSITIONS, "yes", "no"):
        changed = _other_word(word, rng)
    else:
        raise InjectionError(f"injection: no object and no answer of the drawn world in {text!r}")
    if changed == text.strip():
        raise InjectionError("injection: nothing changed")
    return changed


def _inject_caption(mentions: list[Mention], rng: random.Random) -> str:
    objects = [(m.color, m.shape, m.position) for m in mentions]
    touched = rng.sample(range(len(objects)), min(rng.randint(1, MAX_ERRORS), len(objects)))
    for index in sorted(touched, reverse=True):
        color, shape, place = objects[index]
        other_color, other_shape = companion((color, shape))
        free = [p for p in POSITIONS if p not in {position for _, _, position in objects}]
        kinds = ["object", "color"] + ["place", "companion"] * bool(free and place)
        match rng.choice(kinds):
            case "object":
                objects[index] = (other_color, other_shape, place)
            case "color":
                objects[index] = (other_color, shape, place)
            case "place":
                objects[index] = (color, shape, rng.choice(free))
            case _:
                objects.insert(index + 1, (other_color, other_shape, rng.choice(free)))
    return " ".join(
        sentence(color, shape, place) if place else f"{color} {shape} ."
        for color, shape, place in objects
    )


def _other_word(word: str, rng: random.Random) -> str:
    if word in ("yes", "no"):
        return "no" if word == "yes" else "yes"
    if word in COLORS:
        return companion((word, "circle"))[0]
    if word in POSITIONS:
        return rng.choice([place for place in POSITIONS if place != word])
    index = NUMBERS.index(word)
    return rng.choice([NUMBERS[i] for i in (index - 1, index + 1) if 0 <= i < len(NUMBERS)])


def injection_request(question: str, answer: str) -> str:
    """What a text model is asked: BPO's template for descriptions, or the one for answers."""
    short = len(answer.split()) <= SHORT_ANSWER_WORDS
    template = QA_REQUEST if short else DESCRIPTION_REQUEST
    return template.format(question=question, answer=answer)


def read_injection(reply: str, answer: str) -> str:
    """The rewritten answer in a text model's reply.

    Raises:
        InjectionError: not exactly one line starts with "Rewritten:", it is empty, or it says what
            the answer says.
    """
    lines = [line.strip() for line in reply.splitlines()]
    found = [line for line in lines if line.casefold().startswith(REWRITTEN)]
    if len(found) != 1:
        raise InjectionError(f"injection: {len(found)} lines of the reply start with 'Rewritten:'")
    text = found[0][len(REWRITTEN) :].strip().strip('"').strip()
    if not text:
        raise InjectionError("injection: the reply is empty after 'Rewritten:'")
    if text.casefold().split() == answer.casefold().split():
        raise InjectionError("injection: nothing changed")
    return text
