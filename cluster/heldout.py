"""Held-out evaluation on the drawn world: the engine answers, the ground truth decides."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import get_args

from PIL import Image

from cluster.session import Session
from trainers.data.images import ImageStore
from trainers.data.records import Sample, Turn
from trainers.data.scenes import (
    DESCRIBE_PROMPTS,
    Scene,
    Split,
    held_out_scenes,
    pope_questions,
)
from trainers.evaluation import caption_metrics, pope_metrics

HELD_OUT_SEED, CURVE_SEED = 2026, 2027
MAX_TOKENS = 64


Ask = Callable[[Sample], Sample]
"""From a sample to how the policy is asked it: `trainers.method.Method.ask`."""


def plainly(sample: Sample) -> Sample:
    """The sample as it is."""
    return sample


class HeldOut:
    """Held-out scenes, their captions' prompt and their POPE questions. Greedy answers.

    The scenes of the curve are the first of them. With `separate_curve` they are drawn apart, for
    runs in which the curve decides which round is evaluated: on the same scenes the best of
    several rounds looks better than it is.
    """

    def __init__(
        self,
        store: ImageStore,
        num_scenes: int,
        num_curve_scenes: int,
        *,
        separate_curve: bool = False,
    ):
        self.captions: list[Sample] = []
        self.questions: list[tuple[Split, str, Sample]] = []
        rng = random.Random(HELD_OUT_SEED)
        for index, (scene, image) in enumerate(held_out_scenes(num_scenes, HELD_OUT_SEED)):
            caption = _caption_sample(store, f"heldout-{index}", scene, image)
            reference = caption.images
            self.captions.append(caption)
            for split in get_args(Split):
                for number, (text, label) in enumerate(
                    pope_questions(scene, split, rng, per_label=1)
                ):
                    sample = Sample(
                        id=f"heldout-{index}/{split}/{number}",
                        prompt=(Turn(role="user", text=text, num_images=1),),
                        images=reference,
                        kind="exists",
                        truth=scene.truth(label),
                    )
                    self.questions.append((split, label, sample))
        self.curve = self.captions[:num_curve_scenes]
        if separate_curve:
            drawn = held_out_scenes(num_curve_scenes, CURVE_SEED)
            self.curve = [
                _caption_sample(store, f"curve-{index}", scene, image)
                for index, (scene, image) in enumerate(drawn)
            ]

    def quick(self, session: Session, ask: Ask = plainly) -> dict[str, float]:
        """Caption metrics of the curve's scenes: a point of the curve."""
        if not self.curve:
            return {}
        metrics, _ = self._captions(session, [ask(sample) for sample in self.curve])
        return {name: metrics[name] for name in ("chair_i", "chair_s", "recall", "response_length")}

    def full(self, session: Session, ask: Ask = plainly) -> tuple[dict[str, float], list[str]]:
        """All metrics, and the caption of every scene."""
        metrics, answers = self._captions(session, [ask(sample) for sample in self.captions])
        samples = [ask(sample) for _, _, sample in self.questions]
        texts = [text for text, _ in _greedy(session, samples, max_tokens=4)]
        items = [
            (split, label, text)
            for (split, label, _), text in zip(self.questions, texts, strict=True)
        ]
        return metrics | pope_metrics(items), answers

    def _captions(
        self, session: Session, samples: Sequence[Sample]
    ) -> tuple[dict[str, float], list[str]]:
        answers = _greedy(session, samples, max_tokens=MAX_TOKENS)
        items = [
            (sample.truth or {}, text, tokens)
            for sample, (text, tokens) in zip(samples, answers, strict=True)
        ]
        return caption_metrics(items), [text for text, _ in answers]


def _caption_sample(store: ImageStore, id: str, scene: Scene, image: Image.Image) -> Sample:
    return Sample(
        id=id,
        prompt=(Turn(role="user", text=DESCRIBE_PROMPTS[0], num_images=1),),
        images=(store.put_image(image),),
        kind="describe",
        truth=scene.truth(None),
    )


def _greedy(
    session: Session, samples: Sequence[Sample], *, max_tokens: int
) -> list[tuple[str, int]]:
    """(text, tokens) per sample.

    Raises:
        RuntimeError: a held-out sample could not be answered; an evaluation on fewer would not be
            comparable.
    """
    rollouts, dropped = session.ask(
        "rollout",
        "generate",
        samples,
        limit="generate",
        num_rollouts_per_prompt=1,
        temperature=0.0,
        max_tokens=max_tokens,
        seed=0,
        prefix="eval/",
    )
    if dropped:
        raise RuntimeError(f"evaluation: {dropped[0].sample_id}: {dropped[0].reason}")
    return [(rollout.text, len(rollout.token_ids)) for rollout in rollouts]
