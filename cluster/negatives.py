"""A round of made pairs: answers that are preferred by where they come from, not by a judge.

    chosen    the policy's answers to the clean image, its best one, or the data's own answer
    rejected  answers to distorted images, answers with errors put in, pieces sampled anew, ...

Both become judged rollouts whose score says which side they are on (1 and 0), so that methods mine,
prepare and train on them as on any others, and recordings of them can be replayed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from actors.answers import DroppedSample, SegmentSettings
from cluster.arm import Arm
from cluster.driver import (
    PromptSource,
    RolloutSource,
    count,
    require_usable,
    write_round,
)
from cluster.online import OnlineRollouts
from cluster.residency import at_work, awake
from cluster.session import Session
from cluster.sync import give_weights, sync
from cluster.writer import ask_writer
from rewards.injection import InjectionError, inject_drawn, injection_request, read_injection
from trainers.data.records import BY_SOURCE, Rollout, Sample, ScoredRollout

NOT_THE_POLICY = 0
"""Version of weights in the rollout engine that are another's."""
Made = tuple[list[Rollout], list[DroppedSample]]


def rollout_source(session: Session, arm: Arm, prompts: PromptSource) -> RolloutSource:
    """Where the arm's rollouts come from: the policy and the judge, or made pairs."""
    if arm.config.negatives.rejected:
        return MadePairs(session, arm, prompts)
    return OnlineRollouts(session, arm, prompts)


class MadePairs(OnlineRollouts):
    """Chosen and rejected answers by construction, written to disk before training."""

    def collect(self, number: int) -> tuple[dict[str, Sample], list[ScoredRollout]]:
        """Make, perhaps criticise, and record the round's answers."""
        arm, config = self.arm, self.arm.config.negatives
        samples = {sample.id: sample for sample in self.prompts.round(number)}
        dropped: list[DroppedSample] = []
        with arm.phase("generate"):
            right = self._annotations(samples.values(), dropped, number)
            plain = self._answers(samples, dropped, number) if config.needs_policy else []
            wrong = [
                rollout
                for source in config.rejected
                for rollout in self._rejected(source, samples, right, plain, dropped, number)
            ]
        chosen = [rollout for group in right.values() for rollout in group]
        if config.chosen != "data":
            chosen = plain
        with arm.phase("judge"):
            judged = self._score(samples, chosen, wrong)
        arm.result.rollouts += len(chosen) + len(wrong)
        with arm.phase("record"):
            write_round(arm.folder, number, list(samples.values()), judged)
        reasons = [item.reason for item in dropped]
        for reason in reasons:
            count(arm.result.dropped, reason)
        total = len(judged) + len(reasons)
        require_usable(arm, number, len(reasons), total, reasons)
        return samples, judged

    def _annotations(
        self, samples: Iterable[Sample], dropped: list[DroppedSample], number: int
    ) -> dict[str, list[Rollout]]:
        """The data's own answer to each sample that has one, by sample id."""
        if not self.arm.config.negatives.needs_annotation:
            return {}
        rollouts = self._given(samples, "chosen", dropped, number)
        return {rollout.sample_id: [rollout] for rollout in rollouts}

    def _given(
        self,
        samples: Iterable[Sample],
        column: Literal["chosen", "rejected"],
        dropped: list[DroppedSample],
        number: int,
    ) -> list[Rollout]:
        """A column of the data as rollouts."""
        given: list[tuple[Sample, str]] = []
        for sample in samples:
            text: str | None = getattr(sample, column)
            if text is None:
                dropped.append(DroppedSample(sample.id, f"data answer: no `{column}` in the row"))
            else:
                given.append((sample, text))
        rollouts, bad = self._call("encode_answers", given, "data", f"r{number}/{column}/")
        dropped += bad
        return rollouts

    def _answers(
        self,
        samples: Mapping[str, Sample],
        dropped: list[DroppedSample],
        number: int,
        noise_step: int | None = None,
    ) -> list[Rollout]:
        rollout = self.arm.config.rollout
        rollouts, bad = self._call(
            "generate",
            list(samples.values()),
            num_rollouts_per_prompt=rollout.num_rollouts_per_prompt,
            temperature=rollout.temperature,
            max_tokens=rollout.max_tokens,
            seed=self.arm.config.seed * 1000 + number,
            prefix=f"r{number}/" + ("" if noise_step is None else f"noise-{noise_step}/"),
            noise_step=noise_step,
        )
        dropped += bad
        return rollouts

    def _rejected(
        self,
        source: str,
        samples: Mapping[str, Sample],
        right: Mapping[str, list[Rollout]],
        plain: Sequence[Rollout],
        dropped: list[DroppedSample],
        number: int,
    ) -> list[Rollout]:
        config = self.arm.config
        if source == "policy":
            return list(plain)
        if source == "data":
            return self._given(samples.values(), "rejected", dropped, number)
        if source == "noisy":
            return [
                rollout
                for step in config.negatives.noise_steps
                for rollout in self._answers(samples, dropped, number, step)
            ]
        answers = [(samples[id], rollout) for id, group in right.items() for rollout in group]
        if source == "injected":
            made, bad = self._inject(answers, number)
        else:
            made, bad = self._segments(answers, number)
        dropped += bad
        return made

    def _inject(self, answers: Sequence[tuple[Sample, Rollout]], number: int) -> Made:
        """The data's answers with errors put in, by a text model or the drawn world's rules."""
        rng = random.Random(f"injection-{self.arm.config.seed}-{number}")
        replies: list[str | None] = [None] * len(answers)
        by_model = self.arm.config.negatives.injector is not None
        if by_model:
            requests = [
                injection_request(sample.prompt[-1].text, rollout.text)
                for sample, rollout in answers
            ]
            replies = ask_writer(self.session, self.arm, requests)
        given: list[tuple[Sample, str]] = []
        failed: list[DroppedSample] = []
        for (sample, rollout), reply in zip(answers, replies, strict=True):
            try:
                if by_model:
                    given.append((sample, read_injection(reply or "", rollout.text)))
                else:
                    given.append((sample, inject_drawn(rollout.text, rng)))
            except InjectionError as error:
                failed.append(DroppedSample(sample.id, str(error)))
        rollouts, bad = self._call("encode_answers", given, "injected", f"r{number}/")
        return rollouts, [*failed, *bad]

    def _segments(self, answers: Sequence[tuple[Sample, Rollout]], number: int) -> Made:
        config = self.arm.config
        settings = SegmentSettings(
            max_tokens=config.negatives.segment_tokens,
            temperature=config.negatives.segment_temperature,
            top_p=config.negatives.segment_top_p,
            top_k=config.negatives.segment_top_k,
            seed=config.seed * 1000 + number,
        )
        with self._writing():
            return self._call("resample_segments", answers, settings, f"r{number}/")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Inside, the engine holds the weights that write segments; after it, the policy's."""
        if self.arm.config.negatives.segment_writer == "policy":
            yield
            return
        size = self.arm.config.train.bucket_mib * 2**20

        def reference() -> Any:
            return self.session.ask("reference", "weight_buckets", size, limit="sync", stays=True)

        with at_work(self.session, self.arm, "reference"):
            give_weights(self.session, self.arm, reference, NOT_THE_POLICY)
        try:
            yield
        finally:
            sync(self.session, self.arm)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Made:
        with awake(self.session, self.arm, "rollout"):
            made: Made = self.session.ask("rollout", name, *args, limit="generate", **kwargs)
        return made

    def _score(
        self, samples: Mapping[str, Sample], chosen: Sequence[Rollout], wrong: Sequence[Rollout]
    ) -> list[ScoredRollout]:
        config = self.arm.config.negatives
        if not config.needs_judge:
            preferred = [_side(rollout, 1.0) for rollout in chosen]
            return preferred + [_side(rollout, 0.0) for rollout in wrong]
        asked = [*chosen, *wrong] if config.critiques else list(chosen)
        judged = {item.rollout.id: item for item in self._judge(samples, asked)}
        self.arm.result.judge_calls += len(judged)
        for item in judged.values():
            if item.failure is not None:
                count(self.arm.result.dropped, f"judge: {item.failure}")
        if config.chosen == "judge":
            chosen = best_of_each([judged[rollout.id] for rollout in chosen])
            best = {rollout.id for rollout in chosen}
            wrong = [rollout for rollout in wrong if rollout.id not in best]
        return [
            _side(rollout, score, judged.get(rollout.id))
            for side, score in ((chosen, 1.0), (wrong, 0.0))
            for rollout in side
        ]


def best_of_each(judged: Sequence[ScoredRollout]) -> list[Rollout]:
    """The response of each sample that the judge scored highest; a failure is never the best."""
    best: dict[str, tuple[float, Rollout]] = {}
    for item in judged:
        id = item.rollout.sample_id
        if item.score is not None and (id not in best or item.score > best[id][0]):
            best[id] = (item.score, item.rollout)
    return [rollout for _, rollout in best.values()]


def _side(rollout: Rollout, score: float, judged: ScoredRollout | None = None) -> ScoredRollout:
    """A rollout on its side of a pair, with what a judge said of it."""
    item = ScoredRollout(rollout=rollout, judge=BY_SOURCE, score=score)
    if judged is None:
        return item
    components = dict(judged.components)
    if judged.score is not None:
        components[judged.judge] = judged.score
    return replace(item, critique=judged.critique, components=components)
