"""Held-out evaluation on the drawn world: the engine answers, the ground truth decides."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import get_args

import ray

from cluster.session import Session
from trainers.data.images import ImageStore
from trainers.data.records import Sample, Turn
from trainers.data.scenes import DESCRIBE_PROMPTS, Split, held_out_scenes, pope_questions
from trainers.evaluation import caption_metrics, pope_metrics

HELD_OUT_SEED = 2026
MAX_TOKENS = 64


class HeldOut:
    """Held-out scenes, their captions' prompt and their POPE questions. Greedy answers."""

    def __init__(self, store: ImageStore, num_scenes: int, num_curve_scenes: int):
        self.captions: list[Sample] = []
        self.questions: list[tuple[Split, str, Sample]] = []
        rng = random.Random(HELD_OUT_SEED)
        for index, (scene, image) in enumerate(held_out_scenes(num_scenes, HELD_OUT_SEED)):
            reference = (store.put_image(image),)
            prompt = (Turn(role="user", text=DESCRIBE_PROMPTS[0], num_images=1),)
            self.captions.append(
                Sample(
                    id=f"heldout-{index}",
                    prompt=prompt,
                    images=reference,
                    kind="describe",
                    truth=scene.truth(None),
                )
            )
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
        self.num_curve_scenes = min(num_curve_scenes, num_scenes)

    def quick(self, session: Session) -> dict[str, float]:
        """Caption metrics of the first scenes: a point of the curve."""
        if not self.num_curve_scenes:
            return {}
        metrics, _ = self._captions(session, self.captions[: self.num_curve_scenes])
        return {name: metrics[name] for name in ("chair_i", "chair_s", "recall", "response_length")}

    def full(self, session: Session) -> tuple[dict[str, float], list[str]]:
        """All metrics, and the caption of every scene."""
        metrics, answers = self._captions(session, self.captions)
        samples = [sample for _, _, sample in self.questions]
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


def _greedy(
    session: Session, samples: Sequence[Sample], *, max_tokens: int
) -> list[tuple[str, int]]:
    """(text, tokens) per sample.

    Raises:
        RuntimeError: a held-out sample could not be answered; an evaluation on fewer would not be
            comparable.
    """
    rollouts, dropped = ray.get(
        session.actor("rollout").generate.remote(
            samples,
            num_rollouts_per_prompt=1,
            temperature=0.0,
            max_tokens=max_tokens,
            seed=0,
            prefix="eval/",
        )
    )
    if dropped:
        raise RuntimeError(f"evaluation: {dropped[0].sample_id}: {dropped[0].reason}")
    return [(rollout.text, len(rollout.token_ids)) for rollout in rollouts]
