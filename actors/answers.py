"""Responses that no policy sampled as a whole: given texts, and texts with a piece sampled anew."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from actors.engine import Engine, Request, Truncation
from trainers.data.records import Rollout, Sample, Source, Turn


@dataclass(frozen=True, slots=True)
class DroppedSample:
    """A sample that could not be answered, and why."""

    sample_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSettings:
    """How a piece of an answer is sampled anew. Defaults: SAPO's."""

    max_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 50
    seed: int = 0


def encode_answers(
    engine: Engine, answers: Sequence[tuple[Sample, str]], source: Source, prefix: str
) -> tuple[list[Rollout], list[DroppedSample]]:
    """Each text as the rollout that a policy would have sampled, EOS included, without logprobs.

    Dropped with its reason: a text with tokens that no policy can emit, one whose tokens start
    inside the prompt's last token, and one that does not fit.
    """
    processing, limit = engine.processing, engine.spec.max_model_len
    rollouts: list[Rollout] = []
    dropped: list[DroppedSample] = []
    for sample, text in answers:
        turns = (Turn(role="assistant", text=text),)
        try:
            processing.images(sample.images)  # whether they can be read
            whole = processing.encode(sample.id, sample.prompt, sample.images, turns=turns)
            alone = processing.expanded_prompt_ids(sample.id, sample.prompt, sample.images)
        except ValueError as error:
            dropped.append(DroppedSample(sample.id, f"{source} answer: {error}"))
            continue
        start = len(alone)
        token_ids = tuple(int(token) for token in whole.input_ids[whole.target_mask])
        if whole.input_ids[:start].tolist() != alone:
            reason = f"{source} answer: its first token is also the prompt's last"
            dropped.append(DroppedSample(sample.id, reason))
        elif start + len(token_ids) > limit:
            reason = (
                f"{source} answer: {start + len(token_ids)} tokens with its prompt, more than "
                f"rollout.max_model_len={limit}"
            )
            dropped.append(DroppedSample(sample.id, reason))
        else:
            rollouts.append(
                Rollout(
                    id=f"{prefix}{sample.id}/{source}",
                    sample_id=sample.id,
                    text=text,
                    token_ids=token_ids,
                    logprobs=(),
                    policy_version=engine.version,
                    seed=0,
                    temperature=0.0,
                    finish_reason="stop",
                    prompt_tokens=start,
                    source=source,
                )
            )
    return rollouts, dropped


def resample_segments(
    engine: Engine,
    rollouts: Sequence[tuple[Sample, Rollout]],
    settings: SegmentSettings,
    prefix: str,
) -> tuple[list[Rollout], list[DroppedSample]]:
    """SAPO's rejected responses: A B C becomes A B' C, with B' sampled as the continuation of A.

    The cut before B is uniform over the response's tokens but EOS; B has at most `max_tokens`, and
    B' at most as many as B. An EOS in B' is left out, so that C follows; where nothing is left of
    it the splice is one that lacks B.
    Source: SAPO (arXiv 2405.20830).
    """
    rng = random.Random(f"segments-{settings.seed}")
    requests: list[Request] = []
    tails: list[tuple[int, ...]] = []
    for sample, rollout in rollouts:
        body = len(rollout.token_ids) - (rollout.finish_reason == "stop")
        cut = rng.randrange(max(body, 1))
        end = min(cut + settings.max_tokens, body)
        requests.append(
            Request(
                sample.prompt,
                sample.images,
                prefix_ids=rollout.token_ids[:cut],
                max_tokens=max(end - cut, 1),
            )
        )
        tails.append(rollout.token_ids[end:])
    answers = engine.generate(
        requests,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        truncation=Truncation(settings.top_p, settings.top_k),
    )
    spliced: list[Rollout] = []
    dropped: list[DroppedSample] = []
    eos = engine.processing.eos_id
    for (sample, rollout), request, tail, answer in zip(
        rollouts, requests, tails, answers, strict=True
    ):
        if isinstance(answer, str):
            dropped.append(DroppedSample(sample.id, f"segment: {answer}"))
            continue
        segment = tuple(token for token in answer[0].token_ids if token != eos)
        token_ids = (*request.prefix_ids, *segment, *tail)
        text = engine.processing.tokenizer.decode(token_ids, skip_special_tokens=True)
        spliced.append(
            Rollout(
                id=f"{prefix}{sample.id}/segment",
                sample_id=sample.id,
                text=text.strip(),
                token_ids=token_ids,
                logprobs=(),
                policy_version=engine.version,
                seed=settings.seed,
                temperature=settings.temperature,
                finish_reason=rollout.finish_reason,
                prompt_tokens=rollout.prompt_tokens,
                source="segment",
            )
        )
    return spliced, dropped
