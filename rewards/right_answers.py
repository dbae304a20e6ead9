"""Whether a response gives the right short answer: yes or no, a letter, a word or a number."""

from __future__ import annotations

import re
from typing import Any

_LETTER = re.compile(r"^\(?([A-Z])\)?[.):]?(?:\s|$)|\banswer is:?\s*\(?([A-Z])\)?(?![\w'])")
"""The two ways to choose: the letter first, or "the answer is B"."""


def right_answer(truth: dict[str, Any] | None) -> str | None:
    """The short answer that the data holds to be right, if it has one."""
    answer = (truth or {}).get("answer")
    return None if answer is None or not str(answer).strip() else str(answer).strip()


def is_correct(answer: str, response: str) -> bool:
    """Whether `response` gives `answer`.

    * `yes` and `no`: the response's first word, in any case.
    * One capital letter (multiple choice): the letter that the response starts with, or the one
      after "answer is"; a response that names two different ones is wrong.
    * Anything else: equal, but for case, articles and punctuation at the ends.
    """
    if answer.lower() in ("yes", "no"):
        return first_word(response) == answer.lower()
    if re.fullmatch(r"[A-Z]", answer):
        return {a or b for a, b in _LETTER.findall(response.strip())} == {answer}
    return _plain(answer) == _plain(response)


def fact_rlhf_bonus(answer: str, response: str) -> float:
    """LLaVA-RLHF's bonus (arXiv 2309.14525): 1 for a right choice; where "no" is right, 0.5 for
    "no" and -0.5 for "yes"; where "yes" is right always 0, against the bias to agree.
    """
    if answer.lower() == "yes":
        return 0.0
    if answer.lower() == "no":
        return {"no": 0.5, "yes": -0.5}.get(first_word(response), 0.0)
    return float(is_correct(answer, response))


def first_word(text: str) -> str:
    """The first run of letters, in lower case; empty if there is none."""
    found = re.search(r"[^\W\d_]+", text)
    return found[0].lower() if found else ""


def _plain(text: str) -> str:
    words = text.lower().strip(" \t\n.,;:!?\"'").split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))
