"""Corrective question-and-answer turns from what a critique found wrong (nSFT).

nSFT turns the rejected response into *positive* likelihood on denials: "is there a cat ? no". The
paper lets GPT-4 write the turns from a codebook of visual errors; here the judge's findings are the
error list and templates write the turns, so that no further model is needed.
Source: nSFT (arXiv 2411.14797); the templates follow its treatment of OCR-VQA.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from trainers.data.records import Correction, Finding, PreferencePair, ScoredRollout, Turn

AbsentClaim = Callable[[frozenset[str], random.Random], str | None]
"""From the claims already spoken of (normalised: lower case, single spaces) and a source of
randomness to a claim that is probably false of the image, or None when there is none to offer."""


def correction_from(
    pair: PreferencePair,
    prompt: Sequence[Turn],
    *,
    max_turns: int,
    rng: random.Random,
    question_template: str = "is there a {claim} ?",
    yes: str = "yes",
    no: str = "no",
    fallback_absent: AbsentClaim | None = None,
    statement_template: str | None = None,
) -> Correction | None:
    """Build the turns that correct `pair.rejected`, or None when its critique gives no reason.

    Only the critiques' findings are used, never the data's ground truth.

    * Denials (answer `no`): claims that the rejected response's critique calls bad. A bad claim can
      be true of the image all the same (said twice, or of the wrong place): one that either
      critique also calls ok or missing, or gives as a correction, is never denied.
    * Affirmations (answer `yes`): claims that it calls missing, and what it gives as corrections;
      then what it calls ok; then what the chosen response's critique calls ok or missing.
    * Equally many of both, at most `max_turns` in all; otherwise the model learns that the answer
      is "no". The number follows the larger of bad and missing; `fallback_absent` supplies denials
      where the critique names too few.
    * Where a bad claim is the whole response (the answer to a question on colour, count or yes/no)
      and has a correction, the prompt's last question is asked again, with the correction as the
      answer.

    None when the rejected response has no critique, when the critique finds nothing bad or missing,
    or when no balanced turn can be made of it; the caller counts it as a failure.

    Args:
        prompt: the sample's prompt; its images come with the first corrective question.
        max_turns: most question-and-answer pairs, at least 2. The paper has 5-turn dialogues.
        rng: order of turns and choice of claims.
        question_template: with `{claim}`; natural English: "Is there a {claim} in the image?".
        fallback_absent: see `AbsentClaim`; without it a critique that only finds things missing
            has nothing to deny beyond what is bad, and may give no turns.
        statement_template: with `{claim}`, for claims inside a longer response that are not about
            existence ("Is it true that {claim}?"); None leaves those out.
    """
    if max_turns < 2:
        raise ValueError(f"max_turns must be at least 2, got {max_turns}")
    rejected, chosen = _findings(pair.rejected), _findings(pair.chosen)
    if all(finding.verdict in ("ok", "absent") for finding in rejected):
        return None

    answer = normalise(pair.rejected.rollout.text).rstrip(" .!?")
    whole = [f for f in rejected if f.verdict == "bad" and normalise(f.claim) == answer]
    rejected = [f for f in rejected if f not in whole]
    question = next((turn.text for turn in reversed(prompt) if turn.role == "user"), "")
    asked = [(question, f.correction) for f in whole if f.correction][:1]
    templates = _Templates(question_template, statement_template, frozenset((yes, no)))
    claims = _sort_claims(rejected, chosen, templates)
    number = min(max(len(claims.denied), len(claims.missing)), (max_turns - len(asked)) // 2)
    denied = _sample(claims.denied, number, rng)
    denied += _absent(number - len(denied), claims, question_template, fallback_absent, rng)
    affirmed = _sample(claims.missing, number, rng)
    affirmed += _sample(claims.present, number - len(affirmed), rng)
    number = min(len(denied), len(affirmed))
    asked += [(question, no) for question in denied[:number]]
    asked += [(question, yes) for question in affirmed[:number]]
    if not asked:
        return None
    rng.shuffle(asked)
    return Correction(
        sample_id=pair.sample_id,
        rollout_id=pair.rejected.rollout.id,
        turns=tuple(_turns(asked, sum(turn.num_images for turn in prompt))),
    )


@dataclass(frozen=True, slots=True)
class _Templates:
    question: str
    statement: str | None
    answers: frozenset[str]

    def ask(self, claim: str, finding: Finding) -> str | None:
        """The question about `claim`, or None when no template suits it."""
        template = self.question if finding.kind == "existence" else self.statement
        if template is None or normalise(claim) in {normalise(word) for word in self.answers}:
            return None
        return template.format(claim=claim)


@dataclass(frozen=True, slots=True)
class _Claims:
    """Questions by the answer they deserve; no question is in two lists."""

    denied: list[str]
    missing: list[str]
    """True of the image and left out or got wrong: the affirmations that teach most."""
    present: list[str]
    known: frozenset[str]
    """Every claim spoken of, normalised."""


def _sort_claims(rejected: list[Finding], chosen: list[Finding], templates: _Templates) -> _Claims:
    true_findings = [f for f in (*rejected, *chosen) if f.verdict in ("ok", "missing")]
    true_claims = {normalise(f.claim) for f in true_findings}
    true_claims |= {normalise(f.correction) for f in (*rejected, *chosen) if f.correction}
    bad = [f for f in rejected if f.verdict == "bad" and normalise(f.claim) not in true_claims]
    missing = [(f.claim, f) for f in rejected if f.verdict == "missing"]
    missing += [(f.correction, f) for f in rejected if f.correction]
    denied = _questions(((f.claim, f) for f in bad), templates, set())
    seen = set(denied)
    missing_questions = _questions(missing, templates, seen)
    seen.update(missing_questions)
    present = _questions(((f.claim, f) for f in true_findings), templates, seen)
    known = true_claims | {normalise(f.claim) for f in (*rejected, *chosen)}
    return _Claims(denied, missing_questions, present, frozenset(known))


def _questions(
    claims: Iterable[tuple[str, Finding]], templates: _Templates, seen: set[str]
) -> list[str]:
    """Questions in order, each once (whatever its case and spacing), none of `seen`."""
    known = {normalise(question) for question in seen}
    questions: list[str] = []
    for claim, finding in claims:
        question = templates.ask(claim, finding)
        if question is not None and normalise(question) not in known:
            known.add(normalise(question))
            questions.append(question)
    return questions


def _absent(
    number: int,
    claims: _Claims,
    template: str,
    fallback: AbsentClaim | None,
    rng: random.Random,
) -> list[str]:
    """`number` questions on claims that nobody made, fewer when the fallback has no more."""
    questions: list[str] = []
    known = set(claims.known)
    while fallback is not None and len(questions) < number:
        claim = fallback(frozenset(known), rng)
        if claim is None or normalise(claim) in known:
            break
        known.add(normalise(claim))
        questions.append(template.format(claim=claim))
    return questions


def _findings(scored: ScoredRollout) -> list[Finding]:
    findings = () if scored.critique is None else scored.critique.findings
    return [finding for finding in findings if finding.claim.strip()]


def _sample(items: list[str], number: int, rng: random.Random) -> list[str]:
    return rng.sample(items, max(min(number, len(items)), 0))


def _turns(asked: list[tuple[str, str]], num_images: int) -> Iterable[Turn]:
    for index, (question, answer) in enumerate(asked):
        yield Turn(role="user", text=question, num_images=0 if index else num_images)
        yield Turn(role="assistant", text=answer)


def normalise(text: str) -> str:
    """Lower case, single spaces: how claims are compared."""
    return " ".join(text.split()).casefold()
