"""Where prompts and judged rollouts come from: the drawn world, a data file, or a recorded run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from rewards.base import JudgeItem, Judgement, scored
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.record_file import read_records
from trainers.data.records import Sample, ScoredRollout
from trainers.data.scenes import scene_samples


class DrawnPrompts:
    """Freshly drawn scenes each round; equal seeds give every method the same ones."""

    def __init__(self, store: ImageStore, num_prompts: int, seed: int):
        self.store, self.num_prompts, self.seed = store, num_prompts, seed

    def round(self, number: int) -> list[Sample]:
        seed = self.seed * 1000 + number
        return list(scene_samples(seed, self.num_prompts, self.store.put_image))


class FilePrompts:
    """A data set's samples, shuffled anew on each pass, `num_prompts` a round."""

    def __init__(self, samples: Sequence[Sample], num_prompts: int, seed: int):
        self.samples, self.num_prompts, self.seed = list(samples), num_prompts, seed

    def round(self, number: int) -> list[Sample]:
        taken: list[Sample] = []
        position = (number - 1) * self.num_prompts
        while len(taken) < min(self.num_prompts, len(self.samples)):
            epoch, offset = divmod(position + len(taken), len(self.samples))
            order = list(range(len(self.samples)))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            candidate = self.samples[order[offset]]
            # At a boundary of two passes a sample may come up again; a round asks each once.
            if any(sample.id == candidate.id for sample in taken):
                position += 1
                continue
            taken.append(candidate)
        return taken


class RecordedRollouts:
    """The judged rollouts of an earlier run, in its order; optionally judged anew."""

    def __init__(
        self,
        run: Path,
        warn: Callable[[str], None],
        judge: tuple[str, Callable[[Sequence[JudgeItem]], list[Judgement]]] | None = None,
    ):
        self.files = sorted((run / "rounds").glob("round_*.msgpack"))
        if not self.files:
            raise UserError(f"{run}: no rounds/round_*.msgpack; give the folder of a finished run")
        self.warn, self.judge = warn, judge

    def collect(self, number: int) -> tuple[dict[str, Sample], list[ScoredRollout]]:
        result = read_records(self.files[number - 1])
        if result.warning:
            self.warn(result.warning)
        samples = {r.id: r for r in result.records if isinstance(r, Sample)}
        judged = [r for r in result.records if isinstance(r, ScoredRollout)]
        if self.judge is not None:
            name, judge = self.judge
            items = [
                JudgeItem(sample=samples[r.rollout.sample_id], rollout=r.rollout) for r in judged
            ]
            judged = scored(items, judge(items), name)
        return samples, judged
