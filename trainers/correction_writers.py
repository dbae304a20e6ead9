"""Who writes nSFT's corrective turns: templates over findings, over short answers, or a model."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from trainers.config import CorrectionsConfig
from trainers.correction_text import (
    correction_of,
    correction_request,
    read_turns,
    short_answer_correction,
)
from trainers.corrections import AbsentClaim, correction_from
from trainers.data.records import Correction, PreferencePair, Sample
from trainers.method import TextModel


def write_corrections(
    pairs: Sequence[PreferencePair],
    samples: Mapping[str, Sample],
    config: CorrectionsConfig,
    rng: random.Random,
    *,
    absent: AbsentClaim,
    text_model: TextModel | None,
) -> list[Correction | None]:
    """The turns that correct each pair's rejected side; None where none could be written.

    One writer for all pairs: what it cannot do is a failure that is counted, and never done by
    another.
    """
    prompts = [samples[pair.sample_id].prompt for pair in pairs]
    if config.writer == "llm":
        assert text_model is not None, "the run loads corrections.model"
        shared = {"max_turns": config.max_turns, "yes": config.yes, "no": config.no}
        requests = [
            correction_request(pair, prompt, **shared)  # type: ignore[arg-type]
            for pair, prompt in zip(pairs, prompts, strict=True)
        ]
        replies = text_model(requests)
        return [
            _from_reply(pair, samples[pair.sample_id], reply, config, rng)
            for pair, reply in zip(pairs, replies, strict=True)
        ]
    if config.writer == "short_answer":
        return [
            short_answer_correction(
                pair,
                prompt,
                template=config.short_template,
                max_words=config.short_words,
                yes=config.yes,
                no=config.no,
                rng=rng,
            )
            for pair, prompt in zip(pairs, prompts, strict=True)
        ]
    return [
        correction_from(
            pair,
            prompt,
            rng=rng,
            fallback_absent=absent,
            max_turns=config.max_turns,
            question_template=config.question_template,
            yes=config.yes,
            no=config.no,
        )
        for pair, prompt in zip(pairs, prompts, strict=True)
    ]


def _from_reply(
    pair: PreferencePair,
    sample: Sample,
    reply: str | None,
    config: CorrectionsConfig,
    rng: random.Random,
) -> Correction | None:
    if reply is None:
        return None
    try:
        asked = read_turns(reply, max_turns=config.max_turns, yes=config.yes, no=config.no)
    except ValueError:
        return None
    rng.shuffle(asked)
    return correction_of(pair, sample.prompt, asked, "llm")
