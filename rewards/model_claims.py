"""Splitter and converter that are models: prompts in, strictly parsed text out.

RLAIF-V uses two fine-tuned language models; here any instructed model is prompted. What does not
parse is a failure, never an empty list of claims.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.asking import Complete, Failed, Prompt
from rewards.base import JudgeItem
from rewards.claims import Claim, Split
from rewards.spans import locate

MAX_WORDS = 300
"""Of an answer that are read; RLAIF-V's limit."""
SUFFIX = "Please answer yes or no."
SPLIT = """Below are a question about an image and somebody's answer to it. List every fact that \
the answer states about the image. Each fact must be one short sentence that can be understood \
without the others. Leave out opinions, advice and what the answer only supposes. Write one fact \
per line, each line starting with "- ", and nothing else.

Question: {question}
Answer: {answer}"""
CONVERT = """Turn this statement into one question that can be answered with yes or no. Keep its \
tense, and keep a negation if it has one. Write the question and nothing else.

Statement: {claim}"""


def model_split(splitter: Complete, converter: Complete) -> Split:
    """A `Split` of two models: the first lists facts, the second makes each a question."""

    def split(items: Sequence[JudgeItem]) -> list[tuple[Claim, ...] | Failed]:
        texts = splitter([Prompt.of(_split_request(item)) for item in items])
        facts = [text if isinstance(text, Failed) else parse_facts(text) for text in texts]
        names = list(
            dict.fromkeys(f for found in facts if not isinstance(found, Failed) for f in found)
        )
        answers = converter([Prompt.of(CONVERT.format(claim=name)) for name in names])
        questions = {
            name: text if isinstance(text, Failed) else parse_question(text)
            for name, text in zip(names, answers, strict=True)
        }
        return [
            found if isinstance(found, Failed) else _claims(found, questions, item.rollout.text)
            for found, item in zip(facts, items, strict=True)
        ]

    return split


def _split_request(item: JudgeItem) -> str:
    answer = " ".join(item.rollout.text.split(" ")[:MAX_WORDS])
    return SPLIT.format(question=item.sample.prompt[-1].text, answer=answer)


def _claims(
    facts: Sequence[str], questions: dict[str, str | Failed], response: str
) -> tuple[Claim, ...] | Failed:
    claims = []
    for fact in facts:
        question = questions[fact]
        if isinstance(question, Failed):
            return question
        claims.append(
            Claim(
                text=fact,
                question=f"{question} {SUFFIX}",
                # A whole sentence does not fit "is there a ...?": kinds other than existence are
                # asked about with `corrections.statement_template`.
                kind="scene",
                span=locate(fact, response),
            )
        )
    return tuple(claims)


def parse_facts(text: str) -> tuple[str, ...] | Failed:
    """The bullets of a splitter's answer; a heading with `###` may stand above them."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "###" not in line]
    bullets = [re.fullmatch(r"[-*•]\s*(\S.*)", line) for line in lines]
    if not lines:
        return Failed("the splitter listed no fact")
    if wrong := [line for line, found in zip(lines, bullets, strict=True) if found is None]:
        return Failed(f"the splitter wrote {wrong[0][:60]!r}, which is no bullet")
    return tuple(found[1] for found in bullets if found is not None)


def parse_question(text: str) -> str | Failed:
    """The one line of a converter's answer, which must be a question."""
    line = " ".join(text.split())
    if "\n" in text.strip() or not line.endswith("?") or line.count("?") != 1:
        return Failed(f"the converter wrote {line[:60]!r}, which is not one question")
    return line
