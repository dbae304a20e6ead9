"""Corrective turns without findings: the doubling of short answers, and what a text model writes.

Source: nSFT (arXiv 2411.14797). Its OCR-VQA turns affirm the right short answer and deny the wrong
one; for longer answers GPT-4 writes the turns, led by a codebook of visual errors. The codebook's
own text is not published; its classes are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from trainers.corrections import normalise
from trainers.data.records import Correction, PreferencePair, Turn

CODEBOOK = """\
Instance level
- existence or category: an object that is not there, or is called something else
- attribute: a wrong color, shape, material, size, text or state of an object
- count: a wrong number of objects
Image level
- scene: a wrong place, event or overall content
- spatial relation: an object at a wrong place or in a wrong relation to another"""
REQUEST = """\
Two answers to a question about an image follow. The first is right, the second has errors. Find \
the visual errors of the second, in this order of classes:

{codebook}

Question: {question}
Right answer: {chosen}
Wrong answer: {rejected}
What a judge found wrong: {critique}

Write at most {turns} short questions about the image that can be answered with yes or no, as \
many with yes as with no. Each no denies one visual error of the wrong answer; each yes affirms \
what is there instead. Ask about objects, attributes, counts, scene and places only, never about \
style, and do not mention the answers. Write each as two lines:

Q: <question>
A: <{yes} or {no}>"""


def short_answer_correction(
    pair: PreferencePair,
    prompt: Sequence[Turn],
    *,
    template: str,
    max_words: int,
    yes: str,
    no: str,
    rng: random.Random,
) -> Correction | None:
    """Affirm the chosen answer and deny the rejected one, by `template` alone.

    None when one of them has more than `max_words` words, or both say the same; the caller counts
    it. Limiting case: one yes and one no, always.

    Args:
        prompt: its images come with the first question, its last user turn is the question.
        template: with `{question}` and `{answer}`; natural English: "{question} Is it {answer}?".
        rng: which of the two comes first.
    """
    right, wrong = (_bare(side.rollout.text) for side in (pair.chosen, pair.rejected))
    if normalise(right) == normalise(wrong):
        return None
    if not all(0 < len(answer.split()) <= max_words for answer in (right, wrong)):
        return None
    question = _question(prompt)
    asked = [
        (template.format(question=question, answer=answer), verdict)
        for answer, verdict in ((right, yes), (wrong, no))
    ]
    rng.shuffle(asked)
    return correction_of(pair, prompt, asked, "short_answer")


def correction_request(
    pair: PreferencePair, prompt: Sequence[Turn], *, max_turns: int, yes: str, no: str
) -> str:
    """What a text model is asked: both answers, the critique of the rejected one, the codebook."""
    critique = pair.rejected.critique
    return REQUEST.format(
        codebook=CODEBOOK,
        question=_question(prompt),
        chosen=pair.chosen.rollout.text,
        rejected=pair.rejected.rollout.text,
        critique=critique.text if critique is not None and critique.text else "not said",
        turns=max_turns,
        yes=yes,
        no=no,
    )


def read_turns(reply: str, *, max_turns: int, yes: str, no: str) -> list[tuple[str, str]]:
    """The questions and answers of a text model's reply, balanced: as many yes as no.

    Lines before the first "Q:" and blank lines are ignored. What is too many of one answer is left
    out, the last first.

    Raises:
        ValueError: a question without an answer or the other way round, an answer that is neither
            yes nor no, a question asked twice, or not one of each.
    """
    lines = [line.strip() for line in reply.splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if line.startswith("Q:")), len(lines))
    lines = lines[start:]
    answers: dict[str, list[tuple[str, str]]] = {yes: [], no: []}
    seen: set[str] = set()
    for index in range(0, len(lines), 2):
        head, tail = lines[index], lines[index + 1] if index + 1 < len(lines) else ""
        if not head.startswith("Q:") or not tail.startswith("A:"):
            raise ValueError(f"turns: {head[:60]!r} is not a question with its answer")
        question, answer = head[2:].strip(), _bare(tail[2:]).casefold()
        verdict = next((word for word in (yes, no) if word.casefold() == answer), None)
        if verdict is None or not question:
            raise ValueError(f"turns: {tail[:60]!r} answers neither {yes} nor {no}")
        if normalise(question) in seen:
            raise ValueError(f"turns: {question[:60]!r} is asked twice")
        seen.add(normalise(question))
        answers[verdict].append((question, verdict))
    number = min(len(answers[yes]), len(answers[no]), max_turns // 2)
    if not number:
        raise ValueError(f"turns: {len(answers[yes])} {yes} and {len(answers[no])} {no}")
    return [turn for side in answers.values() for turn in side[:number]]


def correction_of(
    pair: PreferencePair, prompt: Sequence[Turn], asked: Sequence[tuple[str, str]], writer: str
) -> Correction:
    """The record of these questions and answers; the first question carries the images."""
    num_images = sum(turn.num_images for turn in prompt)
    turns: list[Turn] = []
    for index, (question, answer) in enumerate(asked):
        turns.append(Turn(role="user", text=question, num_images=0 if index else num_images))
        turns.append(Turn(role="assistant", text=answer))
    return Correction(
        sample_id=pair.sample_id,
        rollout_id=pair.rejected.rollout.id,
        turns=tuple(turns),
        writer=writer,
    )


def _question(prompt: Sequence[Turn]) -> str:
    return next((turn.text for turn in reversed(prompt) if turn.role == "user"), "")


def _bare(text: str) -> str:
    return text.strip().rstrip(" .!")
