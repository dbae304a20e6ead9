"""Ask the engine a benchmark's questions, score the answers' tokens, judge them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeVar

from actors.train_spec import TrainSpec
from cluster.config import RunConfig
from cluster.session import Session
from rewards.base import JudgeItem, scored
from trainers.batch import Row
from trainers.benchmarks.questions import Answer, Question
from trainers.benchmarks.self_feedback import best, implicit_reward
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.records import Rollout, Sample, Turn

T = TypeVar("T")
CHUNK = 256
"""Questions, or rows, of one call: what progress is counted in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The samples of one question, by index of the first and the best."""

    rollouts: tuple[Rollout, ...]
    rewards: tuple[float, ...]
    """Implicit rewards, one per rollout."""

    @property
    def best(self) -> Rollout:
        """The rollout with the highest implicit reward."""
        return self.rollouts[best(self.rewards)]


def read_samples(
    session: Session, questions: Sequence[Question], store: ImageStore
) -> list[Sample]:
    """One sample per question, its image in the store.

    Raises:
        UserError: an image is missing or damaged; names its file, or the question.
    """
    samples = []
    hashes: dict[Any, str] = {}
    with session.console.stage("read images", len(questions)) as bar:
        for question in questions:
            if isinstance(question.image, bytes):
                image = store.put_bytes(question.image, f"question {question.id}: image")
            elif (known := hashes.get(question.image)) is not None:
                image = known
            else:
                image = hashes[question.image] = store.put_file(question.image)
            turn = Turn(role="user", text=question.text, num_images=1)
            truth = {**question.truth, "answer": question.label}
            samples.append(
                Sample(
                    id=question.id,
                    prompt=(turn,),
                    images=(image,),
                    kind=question.part,
                    truth=truth,
                )
            )
            bar.advance()
    return samples


def ask(
    session: Session,
    questions: Sequence[Question],
    samples: Sequence[Sample],
    *,
    number: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[tuple[Rollout, ...]]:
    """`number` responses to each question; greedy by default.

    Raises:
        UserError: a question does not fit the engine; metrics of fewer would not be comparable.
    """
    results: dict[int, tuple[Rollout, ...]] = {}
    pairs = list(enumerate(zip(questions, samples, strict=True)))
    pairs.sort(key=lambda pair: pair[1][0].max_tokens)
    with session.console.stage("answer", len(questions)) as bar:
        for max_tokens, group in groupby(pairs, key=lambda pair: pair[1][0].max_tokens):
            for part in _chunks(list(group)):
                rollouts, dropped = session.ask(
                    "rollout",
                    "generate",
                    [sample for _, (_, sample) in part],
                    limit="generate",
                    num_rollouts_per_prompt=number,
                    temperature=temperature,
                    max_tokens=max_tokens,
                    seed=seed,
                    prefix="eval/",
                )
                if dropped:
                    raise UserError(
                        f"question {dropped[0].sample_id}: {dropped[0].reason}; shorten answers "
                        "with --max-tokens or raise --rollout.max_model_len"
                    )
                for position, (index, _) in enumerate(part):
                    results[index] = tuple(rollouts[position * number : (position + 1) * number])
                bar.advance(len(part))
    return [results[index] for index in range(len(questions))]


def answers(
    session: Session,
    samples: Sequence[Sample],
    rollouts: Sequence[Rollout],
    *,
    judged: bool,
) -> list[Answer]:
    """The rollouts as answers, with the judge's scores where the benchmark needs them."""
    plain = [Answer(text=r.text, num_tokens=len(r.token_ids)) for r in rollouts]
    if not judged:
        return plain
    scores = judge_scores(session, samples, rollouts)
    return [replace(each, score=score) for each, score in zip(plain, scores, strict=True)]


def judge_scores(
    session: Session, samples: Sequence[Sample], rollouts: Sequence[Rollout]
) -> list[float | None]:
    """The judge's score of every rollout; None where it failed, which is shown and counted.

    Raises:
        UserError: it failed on all of them; gives its first reason.
    """
    items = [
        JudgeItem(sample=sample, rollout=rollout)
        for sample, rollout in zip(samples, rollouts, strict=True)
    ]
    name = session.ask("judge", "name", limit="answer")
    results = []
    with session.console.stage("judge", len(items)) as bar:
        for part in _chunks(items):
            results += scored(part, session.ask("judge", "judge", part, limit="judge"), name)
            bar.advance(len(part))
    failures = [result.failure for result in results if result.failure is not None]
    if len(failures) == len(results):
        raise UserError(f"the judge failed on all {len(results)} answers: {failures[0]}")
    if failures:
        session.console.warn(f"the judge failed on {len(failures)} answers: {failures[0]}")
    return [result.score for result in results]


def choose_best(
    session: Session,
    samples: Sequence[Sample],
    groups: Sequence[tuple[Rollout, ...]],
    *,
    specs: tuple[TrainSpec, TrainSpec],
) -> list[Chosen]:
    """Implicit rewards of all samples, under the policy and the reference of `specs`.

    Equal responses to a question are scored once.
    """
    rows = {
        (sample.id, rollout.token_ids): Row.of_response(sample, rollout.token_ids, rollout.id)
        for sample, group in zip(samples, groups, strict=True)
        for rollout in group
    }
    policy = score_rows(session, specs[0], [*rows.values()], "score under the model")
    reference = score_rows(session, specs[1], [*rows.values()], "score under the reference")
    rewards = {
        key: implicit_reward(*pair)
        for key, pair in zip(rows, zip(policy, reference, strict=True), strict=True)
    }
    return [
        Chosen(
            rollouts=group,
            rewards=tuple(rewards[sample.id, rollout.token_ids] for rollout in group),
        )
        for sample, group in zip(samples, groups, strict=True)
    ]


def score_rows(
    session: Session, spec: TrainSpec, rows: Sequence[Row], title: str
) -> list[list[float]]:
    """Log-probabilities of every row's target tokens under the model of `spec`."""
    result: list[list[float]] = []
    with session.console.stage(title, len(rows)) as bar:
        session.ask("reference", "load", spec, limit="load")
        for part in _chunks(rows):
            arrays = session.ask(
                "reference",
                "score_rows",
                part,
                limit="logprobs",
                batch_size=spec.micro_batch_size,
            )
            result += [[float(value) for value in array] for array in arrays]
            bar.advance(len(part))
    session.unload("reference")
    return result


def scoring_spec(model_dir: str, store: ImageStore, config: RunConfig) -> TrainSpec:
    """A frozen copy that scores at temperature 1, whatever the samples were drawn with."""
    return TrainSpec(
        role="reference",
        model_dir=model_dir,
        image_root=str(store.root),
        temperature=1.0,
        micro_batch_size=config.train.micro_batch_size,
        micro_batch_tokens=config.train.max_tokens_per_micro_batch,
        packing=config.train.packing,
        share_images=config.train.share_images,
        chunk_size=config.train.logprob_chunk,
        bf16=config.train.bf16,
    )


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
