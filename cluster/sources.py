"""Where prompts and judged rollouts come from: the drawn world, a data file, or a recorded run."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from cluster.config import DataConfig, RunConfig
from cluster.console import Console
from cluster.failures import RunStoppedError
from rewards.base import JudgeItem, Judgement, scored
from trainers.comparison import MethodResult
from trainers.data.datasets import load_samples
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.data.record_file import read_records
from trainers.data.records import Sample, ScoredRollout
from trainers.data.scenes import scene_samples


class DrawnPrompts:
    """Freshly drawn scenes each round; equal seeds give every method the same ones."""

    def __init__(self, store: ImageStore, num_prompts: int, seed: int):
        self.store, self.num_prompts, self.seed = store, num_prompts, seed

    def round(self, number: int) -> list[Sample]:
        """The scenes of round `number`, their images in the store."""
        seed = self.seed * 1000 + number
        return list(scene_samples(seed, self.num_prompts, self.store.put_image))


@dataclass(frozen=True, slots=True)
class DataFile:
    """The usable samples of a data file, and how many rows were dropped for which reason."""

    path: str
    samples: tuple[Sample, ...]
    dropped: dict[str, int]

    @property
    def max_images(self) -> int:
        """Most images of any sample."""
        return max(len(sample.images) for sample in self.samples)

    def fitting(self, processing: Processing, config: RunConfig) -> DataFile:
        """Without the samples whose prompt, images expanded, leaves no room for a response.

        Raises:
            UserError: more than `data.max_dropped_share` do not fit, or the chat template does not
                place the images; names the first sample.
        """
        rollout = config.rollout
        kept: list[Sample] = []
        reasons: list[str] = []
        # Every image of a folder becomes equally many tokens (one crop), so one is processed.
        pixels: dict[int, dict[str, Tensor]] = {}
        for sample in self.samples:
            number = len(sample.images)
            known = pixels.get(number) if number else None
            try:
                encoded = processing.encode(
                    sample.id,
                    sample.prompt,
                    sample.images,
                    response_ids=(),
                    image_inputs=known,
                )
            except ValueError as error:
                raise UserError(f"{self.path}: {error}; check the chat template") from None
            pixels.setdefault(number, encoded.model_inputs)
            length = len(encoded.input_ids)
            if length + rollout.max_tokens <= rollout.max_model_len:
                kept.append(sample)
                continue
            reasons.append(
                f"{self.path}: sample {sample.id}: prompt of {length} tokens (images expanded) and "
                f"{rollout.max_tokens} response tokens exceed rollout.max_model_len="
                f"{rollout.max_model_len}"
            )
        if len(reasons) > config.data.max_dropped_share * len(self.samples):
            raise UserError(
                f"{reasons[0]}; raise it, or shorten the prompts ({len(reasons)} of "
                f"{len(self.samples)} do not fit)"
            )
        dropped = dict(self.dropped)
        if reasons:
            dropped["data: prompt exceeds rollout.max_model_len"] = len(reasons)
        return replace(self, samples=tuple(kept), dropped=dropped)


def read_data(config: DataConfig, store: ImageStore, console: Console) -> DataFile:
    """The samples of `config.path`; says what was found, and why rows were dropped."""
    assert config.path is not None
    loaded = load_samples(config.path, store, image_root=config.image_root)
    console.line(loaded.description)
    for item in loaded.dropped:
        console.warn(f"{config.path}: row {item.row} dropped: {item.reason}")
    reasons = Counter(f"data: {item.reason}" for item in loaded.dropped)
    return DataFile(config.path, loaded.samples, dict(reasons))


class FilePrompts:
    """A data set's samples, shuffled anew on each pass, `num_prompts` a round."""

    def __init__(self, samples: Sequence[Sample], num_prompts: int, seed: int):
        self.samples, self.num_prompts, self.seed = list(samples), num_prompts, seed

    def round(self, number: int) -> list[Sample]:
        """The next `num_prompts` samples, or all if there are fewer; none twice."""
        if self.num_prompts >= len(self.samples):
            return self._shuffled(number)
        start = (number - 1) * self.num_prompts
        epoch, offset = divmod(start, len(self.samples))
        taken = self._shuffled(epoch)[offset : offset + self.num_prompts]
        known = {sample.id for sample in taken}
        # At the boundary of two passes: those that this round has already are left for later ones.
        following = [item for item in self._shuffled(epoch + 1) if item.id not in known]
        return taken + following[: self.num_prompts - len(taken)]

    def _shuffled(self, epoch: int) -> list[Sample]:
        order = list(self.samples)
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return order


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
