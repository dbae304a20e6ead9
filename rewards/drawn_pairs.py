"""Preference data for the drawn world's judge, labelled by ground truth.

Each side of a pair is, with equal probability, one of the base model's own samples or the truth
with errors injected; the better side is the one with fewer errors, and ties are dropped. Own
samples teach the judge the faults it will meet, injected errors those it has not met yet.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from rewards.critique import CRITIQUE_REQUEST, quality, write_critique
from trainers.data.drawn_sft import Example, conversation
from trainers.data.records import Critique, Sample
from trainers.data.scenes import (
    ALL_TYPES,
    COLORS,
    NUMBERS,
    POSITIONS,
    SHAPES,
    Mixture,
    Scene,
    Shape,
    companion,
    scene_from_truth,
    scene_samples,
    sentence,
)

MAX_ERRORS = 3
"""An injected caption has 0 to this many errors."""
CRITIQUE_MIXTURE = Mixture(describe=0.6, question=0.2)
ATTEMPTS = 8
"""Draws of two responses before a prompt is given up as tied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceExample:
    """Two responses to one sample with their critiques; `chosen` has fewer errors."""

    sample: Sample
    chosen: str
    rejected: str
    chosen_critique: Critique
    rejected_critique: Critique


def preference_examples(
    prompts: Iterable[tuple[Sample, Sequence[str]]],
    seed: int,
    *,
    own_share: float = 0.5,
    pairs_per_prompt: int = 1,
) -> Iterator[PreferenceExample]:
    """Up to `pairs_per_prompt` pairs for every (sample, own samples of the base model)."""
    rng = random.Random(f"pairs-{seed}")
    for sample, own in prompts:
        for _ in range(pairs_per_prompt):
            example = _one_pair(sample, own, own_share, rng)
            if example is not None:
                yield example


def _one_pair(
    sample: Sample, own: Sequence[str], own_share: float, rng: random.Random
) -> PreferenceExample | None:
    assert sample.truth is not None, f"sample {sample.id} has no ground truth"
    prompt = sample.prompt[-1].text
    for _ in range(ATTEMPTS):
        texts = [
            rng.choice(own) if own and rng.random() < own_share else corrupt(sample, rng)
            for _ in range(2)
        ]
        scores = [quality(sample.truth, sample.kind, prompt, text) for text in texts]
        if scores[0] == scores[1]:
            continue
        chosen, rejected = texts if scores[0] > scores[1] else reversed(texts)
        return PreferenceExample(
            sample=sample,
            chosen=chosen,
            rejected=rejected,
            chosen_critique=write_critique(sample.truth, sample.kind, prompt, chosen),
            rejected_critique=write_critique(sample.truth, sample.kind, prompt, rejected),
        )
    return None


def critique_conversations(
    seed: int,
    *,
    mixture: Mixture = CRITIQUE_MIXTURE,
    max_objects: int = len(POSITIONS),
    few_colors: float = 0.0,
) -> Iterator[Example]:
    """Endless conversations prompt, response with injected errors, request, true critique.

    Part of the honest data: a model that has learned to check claims one by one becomes a judge in
    few steps. Only the last turn may be trained on; the response before it is wrong on purpose.
    """
    rng = random.Random(f"critiques-{seed}")
    while True:
        images: list[Image.Image] = []

        def put(image: Image.Image, store: list[Image.Image] = images) -> str:
            store.append(image)
            return str(len(store) - 1)

        block = scene_samples(
            rng.randrange(2**32),
            64,
            put,
            mixture=mixture,
            max_objects=max_objects,
            few_colors=few_colors,
        )
        for sample in block:
            assert sample.truth is not None
            (prompt,), response = sample.prompt, corrupt(sample, rng)
            critique = write_critique(sample.truth, sample.kind, prompt.text, response)
            turns = conversation([(prompt.text, response), (CRITIQUE_REQUEST, critique.text)])
            yield Example(images[int(sample.images[0])], turns)


def corrupt(sample: Sample, rng: random.Random) -> str:
    """The true response to `sample` with errors injected (sometimes none)."""
    assert sample.truth is not None
    if sample.kind == "describe":
        return _corrupt_caption(scene_from_truth(sample.truth), rng)
    answer: str = sample.truth["answer"]
    if rng.random() < 0.5:
        return answer
    return rng.choice([word for word in _alternatives(answer) if word != answer])


def _alternatives(answer: str) -> tuple[str, ...]:
    """Answers of the same sort; for a number only its neighbours."""
    if answer in NUMBERS:
        index = NUMBERS.index(answer)
        return tuple(NUMBERS[i] for i in (index - 1, index + 1) if i >= 0)
    return next(
        (group for group in (COLORS, POSITIONS, ("yes", "no")) if answer in group), ("yes", "no")
    )


def _corrupt_caption(scene: Scene, rng: random.Random) -> str:
    objects = list(scene.objects)
    for _ in range(rng.randint(0, MAX_ERRORS)):
        rng.choice(_INJECTIONS)(objects, rng)
    return " ".join(sentence(o.color, o.shape, o.position) for o in objects)


def _drop(objects: list[Shape], rng: random.Random) -> None:
    if len(objects) > 1:
        objects.pop(rng.randrange(len(objects)))


def _swap_color(objects: list[Shape], rng: random.Random) -> None:
    index = rng.randrange(len(objects))
    item = objects[index]
    objects[index] = Shape(rng.choice(COLORS), item.shape, item.position)


def _swap_shape(objects: list[Shape], rng: random.Random) -> None:
    index = rng.randrange(len(objects))
    item = objects[index]
    objects[index] = Shape(item.color, rng.choice(SHAPES), item.position)


def _repeat(objects: list[Shape], rng: random.Random) -> None:
    index = rng.randrange(len(objects))
    objects.insert(index + 1, objects[index])


def _add(objects: list[Shape], rng: random.Random) -> None:
    index = rng.randrange(len(objects))
    kind = companion(objects[index].type) if rng.random() < 0.6 else rng.choice(ALL_TYPES)
    free = [p for p in POSITIONS if p not in {o.position for o in objects}]
    objects.insert(index + 1, Shape(*kind, rng.choice(free or list(POSITIONS))))


_INJECTIONS = (_drop, _swap_color, _swap_shape, _repeat, _add, _add)
