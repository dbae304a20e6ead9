"""Where prompts and judged rollouts come from: the drawn world, a data file, or a recorded run."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from cluster.config import DataConfig, RunConfig
from cluster.console import Console
from cluster.failures import RunStoppedError
from rewards.base import JudgeItem, Judgement, scored
from trainers.comparison import MethodResult
from trainers.data.datasets import SampleFile
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.data.prompt_lengths import prompt_lengths
from trainers.data.record_file import read_records
from trainers.data.records import Sample, ScoredRollout
from trainers.data.sample_index import SampleIndex, index_samples
from trainers.data.scenes import caption, scene_from_truth, scene_samples
from trainers.data.tally import Dropped, Tally


class DrawnPrompts:
    """Freshly drawn scenes each round; equal seeds give every method the same ones."""

    def __init__(self, store: ImageStore, num_prompts: int, seed: int, *, annotated: bool = False):
        self.store, self.num_prompts, self.seed = store, num_prompts, seed
        self.annotated = annotated

    def round(self, number: int) -> list[Sample]:
        """The scenes of round `number`, their images in the store; `annotated` with the right
        answer as the data's own (`chosen`).
        """
        seed = self.seed * 1000 + number
        drawn = scene_samples(seed, self.num_prompts, self.store.put_image)
        return [annotated(sample) for sample in drawn] if self.annotated else list(drawn)


def annotated(sample: Sample) -> Sample:
    """A drawn sample with the answer that a careful annotator would have given."""
    assert sample.truth is not None
    answer = sample.truth["answer"] or caption(scene_from_truth(sample.truth))
    return replace(sample, chosen=answer)


@dataclass(frozen=True, slots=True)
class DataFile:
    """The usable rows of a data file, and how many were dropped for which reason."""

    path: str
    index: SampleIndex
    dropped: dict[str, int]
    max_images: int
    """Most images of any sample."""

    def fitting(self, processing: Processing, config: RunConfig) -> DataFile:
        """Without the samples whose prompt, images expanded, leaves no room for a response.

        Raises:
            UserError: more than `data.max_dropped_share` do not fit, or the chat template does not
                place the images; names the first sample.
        """
        rollout = config.rollout
        fits: list[bool] = []
        first = ""
        for name, length in prompt_lengths(self.index, processing):
            fits.append(length + rollout.max_tokens <= rollout.max_model_len)
            if not fits[-1] and not first:
                first = (
                    f"{self.path}: sample {name}: prompt of {length} tokens (images expanded) and "
                    f"{rollout.max_tokens} response tokens exceed rollout.max_model_len="
                    f"{rollout.max_model_len}"
                )
        number = fits.count(False)
        if number > config.data.max_dropped_share * len(fits):
            raise UserError(
                f"{first}; raise it, or shorten the prompts ({number} of {len(fits)} do not fit)"
            )
        dropped = dict(self.dropped)
        if number:
            dropped["data: prompt exceeds rollout.max_model_len"] = number
        return replace(self, index=self.index.only(fits), dropped=dropped)


def read_data(config: DataConfig, store: ImageStore, console: Console) -> DataFile:
    """The rows of `config.path`, checked; says what was found, and why rows were dropped."""
    assert config.path is not None
    file = SampleFile(
        config.path,
        store,
        image_root=config.image_root,
        format=config.format,
        allow_urls=config.allow_urls,
    )
    tally = Tally()
    index = index_samples(file, tally, config.max_dropped_share)
    console.line(file.describe(tally))
    for item in tally.dropped:
        console.warn(f"{config.path}: row {item.row} dropped: {item.reason}")
    reasons = Counter(f"data: {item.reason}" for item in tally.dropped)
    if more := tally.num_dropped - len(tally.dropped):
        reasons["data: further rows, reasons not kept"] = more
    return DataFile(config.path, index, dict(reasons), tally.max_images)


class Takes(Protocol):
    """Samples that are read when they are asked for."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def take(self, which: Sequence[int]) -> list[Sample | Dropped]:
        """These samples in this order, or why one cannot be used after all."""
        ...


class FilePrompts:
    """A data set's samples, shuffled anew on each pass, `num_prompts` a round.

    Only a round's own samples are in memory. One whose image cannot be decoded is dropped and
    counted in `dropped`; more of them than the share `max_dropped` of a round stop the run.
    """

    def __init__(
        self,
        samples: Takes,
        num_prompts: int,
        seed: int,
        *,
        dropped: dict[str, int] | None = None,
        max_dropped: float = 0.0,
    ):
        self.samples, self.num_prompts, self.seed = samples, num_prompts, seed
        self.dropped = {} if dropped is None else dropped
        self.max_dropped = max_dropped
        self._orders: dict[int, array[int]] = {}

    def round(self, number: int) -> list[Sample]:
        """The next `num_prompts` samples, or all if there are fewer; none twice.

        Raises:
            RunStoppedError: more of them than `max_dropped` cannot be used.
        """
        taken = self.samples.take(self._places(number))
        bad = [item for item in taken if isinstance(item, Dropped)]
        for item in bad:
            reason = f"data: {item.reason}"
            self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if len(bad) > self.max_dropped * len(taken):
            raise RunStoppedError(
                f"round {number}: {len(bad)} of {len(taken)} prompts cannot be used, more than "
                f"data.max_dropped_share={self.max_dropped:g}; the first: row {bad[0].row}: "
                f"{bad[0].reason}"
            )
        return [item for item in taken if isinstance(item, Sample)]

    def _places(self, number: int) -> list[int]:
        size = len(self.samples)
        if self.num_prompts >= size:
            return list(self._order(number))
        epoch, offset = divmod((number - 1) * self.num_prompts, size)
        taken = list(self._order(epoch)[offset : offset + self.num_prompts])
        if len(taken) == self.num_prompts:
            return taken
        known = set(taken)
        # At the boundary of two passes: those that this round has already are left for later ones.
        following = (place for place in self._order(epoch + 1) if place not in known)
        return taken + list(islice(following, self.num_prompts - len(taken)))

    def _order(self, epoch: int) -> array[int]:
        """A permutation of all samples, the same for equal seeds; 8 bytes a sample."""
        if epoch not in self._orders:
            order = array("q", range(len(self.samples)))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: order}
        return self._orders[epoch]


Rejudge = tuple[str, Callable[[Sequence[JudgeItem]], list[Judgement]]]
"""Name and function of another judge for recorded responses."""


class RecordedRollouts:
    """The judged rollouts of an earlier run, in its order; optionally judged anew.

    What is used, judged and dropped is counted in `result`.
    """

    def __init__(
        self,
        run: Path,
        warn: Callable[[str], None],
        rejudge: Rejudge | None = None,
        *,
        result: MethodResult | None = None,
        max_dropped_share: float = 1.0,
    ):
        self.files = sorted((run / "rounds").glob("round_*.msgpack"))
        if not self.files:
            raise UserError(f"{run}: no rounds/round_*.msgpack; give the folder of a finished run")
        self.warn, self.rejudge = warn, rejudge
        self.result = result or MethodResult()
        self.max_dropped_share = max_dropped_share

    def collect(self, number: int) -> tuple[dict[str, Sample], list[ScoredRollout]]:
        """Samples by id and judged rollouts of the `number`-th recorded round."""
        file = self.files[number - 1]
        found = read_records(file)
        if found.warning:
            self.warn(found.warning)
        samples = {record.id: record for record in found.records if isinstance(record, Sample)}
        judged = [record for record in found.records if isinstance(record, ScoredRollout)]
        self.result.rollouts += len(judged)
        if self.rejudge is not None:
            items = [
                JudgeItem(sample=samples[item.rollout.sample_id], rollout=item.rollout)
                for item in judged
            ]
            name, judge = self.rejudge
            judged = scored(items, judge(items), name)
            self.result.judge_calls += len(judged)
        failures = [f"judge: {item.failure}" for item in judged if item.failure is not None]
        for reason in failures:
            self.result.dropped[reason] = self.result.dropped.get(reason, 0) + 1
        if len(failures) > self.max_dropped_share * len(judged):
            raise RunStoppedError(
                f"{file.name}: {len(failures)} of {len(judged)} rollouts failed, more than "
                f"data.max_dropped_share={self.max_dropped_share:g}; the first: {failures[0]}"
            )
        return samples, judged
