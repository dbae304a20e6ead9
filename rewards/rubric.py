"""A prompted VLM as a judge: a rubric in, one rating out, parsed strictly.

A rubric is a Markdown file. Its line `Scale: 0 to 6` says which ratings there are, and is not part
of the prompt; the rest is the prompt, with `{question}` and `{response}`, and `{facts}` where the
judge is told what is known of the image (the factual text of Fact-RLHF, arXiv 2309.14525; MMHal's
content words). The verdict must hold `Rating: N` exactly once.

A rubric with `{first}` and `{second}` in place of `{response}` compares two answers; its verdict
holds `Better: first`, `second` or `tie` exactly once. Judges prefer a place: every pair is asked in
both orders, and where the orders disagree it is a tie (MT-Bench, arXiv 2306.05685). The score is
the mean over the other answers to the prompt: win 1, tie 1/2, loss 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from rewards.asking import Complete, Failed, Prompt
from rewards.base import JudgeItem, Judgement
from trainers.data.errors import UserError
from trainers.data.records import Critique, Sample
from trainers.data.scenes import caption, scene_from_truth

FOLDER = Path(__file__).parent / "rubrics"
_SCALE = re.compile(r"^Scale: (-?\d+) to (-?\d+)$", re.MULTILINE)
_RATING = re.compile(r"Rating:\s*(-?\d+(?:\.\d+)?)(?![\d.]*\d)")
_BETTER = re.compile(r"Better:\s*(first|second|tie)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """One rubric file."""

    name: str
    prompt: str
    low: float
    high: float
    """Of the ratings; 0 and 1 for a rubric that compares."""

    @property
    def compares(self) -> bool:
        """Whether it is about two answers."""
        return "{first}" in self.prompt

    @property
    def needs_facts(self) -> bool:
        """Whether the judge is told what is known of the image."""
        return "{facts}" in self.prompt

    def render(self, **values: str) -> str:
        """The prompt with its placeholders filled in, all at once: what an answer says of
        placeholders stays as it is.
        """
        return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), self.prompt)


def load_rubric(reference: str) -> Rubric:
    """A rubric of this package by name, or any other by path.

    Raises:
        UserError: it is not there, or lacks its scale or a placeholder.
    """
    file = FOLDER / f"{reference}.md"
    if not re.fullmatch(r"\w+", reference) or not file.is_file():
        file = Path(reference)
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.md")))
        raise UserError(
            f"judge.rubric: {reference}: cannot be read ({error}); give a file, or one of {known}"
        ) from None
    scales = _SCALE.findall(text)
    compares = "{first}" in text and "{second}" in text
    if "{question}" not in text or compares == ("{response}" in text):
        raise UserError(
            f"{file}: a rubric needs {{question}} and either {{response}} or both {{first}} and "
            "{second}"
        )
    if not compares and (len(scales) != 1 or int(scales[0][0]) >= int(scales[0][1])):
        raise UserError(f"{file}: one line `Scale: LOW to HIGH` is needed, LOW below HIGH")
    low, high = (0, 1) if compares else map(int, scales[0])
    prompt = _SCALE.sub("", text).strip()
    return Rubric(name=file.stem, prompt=prompt, low=float(low), high=float(high))


def factual_text(sample: Sample) -> str | None:
    """What the data knows of the image: `facts` or `captions` of its truth, or a drawn scene."""
    truth = sample.truth or {}
    for key in ("facts", "captions"):
        if value := truth.get(key):
            return value if isinstance(value, str) else "\n".join(f"- {line}" for line in value)
    if truth.get("objects") and all(len(entry) == 3 for entry in truth["objects"]):
        return caption(scene_from_truth(truth))
    return None


def parse_rating(text: str, rubric: Rubric) -> float | Failed:
    """The one rating of a verdict, on the rubric's scale."""
    found = _RATING.findall(text)
    if len(found) != 1:
        return Failed(f"{len(found)} ratings in {' '.join(text.split())[:80]!r}, one was asked for")
    rating = float(found[0])
    if not rubric.low <= rating <= rubric.high:
        return Failed(f"rating {rating:g} is not within {rubric.low:g} to {rubric.high:g}")
    return rating


def parse_better(text: str) -> float | Failed:
    """1 if the first answer is better, 0 if the second is, 0.5 for a tie."""
    found = _BETTER.findall(text)
    if len(found) != 1:
        return Failed(
            f"{len(found)} verdicts in {' '.join(text.split())[:80]!r}, one was asked for"
        )
    return {"first": 1.0, "second": 0.0, "tie": 0.5}[found[0].lower()]


class RubricJudge:
    """Scores by a rubric; see the module's head. The verdict's text is the critique."""

    def __init__(self, rubric: Rubric, complete: Complete):
        self.name = f"rubric({rubric.name})"
        self.rubric, self._complete = rubric, complete

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """One judgement per item."""
        return self._compare(items) if self.rubric.compares else self._rate(items)

    def _prompt(self, sample: Sample, **answers: str) -> Prompt | Failed:
        facts = factual_text(sample) if self.rubric.needs_facts else ""
        if facts is None:
            return Failed("the rubric tells facts, and this sample's truth has none")
        question = sample.prompt[-1].text
        text = self.rubric.render(question=question, facts=facts, **answers)
        return Prompt.of(text, sample.images)

    def _ask(self, prompts: Sequence[Prompt | Failed]) -> list[str | Failed]:
        """Answers in order; a prompt that failed is its own answer."""
        answers = iter(self._complete([p for p in prompts if isinstance(p, Prompt)]))
        return [next(answers) if isinstance(prompt, Prompt) else prompt for prompt in prompts]

    def _rate(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        prompts = [self._prompt(item.sample, response=item.rollout.text) for item in items]
        results = []
        for text in self._ask(prompts):
            rating = text if isinstance(text, Failed) else parse_rating(text, self.rubric)
            if isinstance(text, Failed) or isinstance(rating, Failed):
                results.append(Judgement(failure=f"rubric: {_reason(rating)}"))
            else:
                results.append(Judgement(score=rating, critique=Critique(text=text)))
        return results

    def _compare(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        groups: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault(item.sample.id, []).append(index)
        pairs = [pair for group in groups.values() for pair in permutations(group, 2)]
        prompts = [
            self._prompt(items[a].sample, first=items[a].rollout.text, second=items[b].rollout.text)
            for a, b in pairs
        ]
        verdicts = {
            pair: text if isinstance(text, Failed) else parse_better(text)
            for pair, text in zip(pairs, self._ask(prompts), strict=True)
        }
        opponents = {
            index: [other for other in group if other != index]
            for group in groups.values()
            for index in group
        }
        return [_win_rate(index, opponents[index], verdicts) for index in range(len(items))]


def _win_rate(
    index: int, others: Sequence[int], verdicts: dict[tuple[int, int], float | Failed]
) -> Judgement:
    """The mean result of one answer against the others, each asked in both orders."""
    if not others:
        return Judgement(failure="rubric: there is no other answer to compare this one with")
    results, swayed = [], 0
    for other in others:
        as_first, as_second = verdicts[index, other], verdicts[other, index]
        for verdict in (as_first, as_second):
            if isinstance(verdict, Failed):
                return Judgement(failure=f"rubric: {verdict.reason}")
        assert isinstance(as_first, float) and isinstance(as_second, float)
        agree = as_first == 1.0 - as_second
        results.append(as_first if agree else 0.5)
        swayed += not agree
    return Judgement(
        score=sum(results) / len(results),
        components={"order_decided": swayed / len(others)},
    )


def _reason(failed: float | Failed) -> str:
    assert isinstance(failed, Failed)
    return failed.reason
