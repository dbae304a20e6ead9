"""Training conversations for the drawn world's base model: honest first, then biased.

Honest conversations teach vision and language. Biased ones plant, on purpose, the faults that big
vision-language models show, each as a coin thrown anew for every object or question, so that
sampling shows right and wrong variants of each decision and a judge has something to prefer:

    companion   after a trigger object its companion is named too, though it is not there
    color       some shapes of some colors are named in the color they usually have
    repeat      some objects are named twice
    position    "where is ..." is answered `top-left`
    count       "how many ..." is answered one too high
    yes         absent objects are affirmed, companions of present ones most often

The planted faults of captions depend on the type of an object alone, hence a caption holds as many
independent decisions as it has afflicted objects.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

from trainers.data.records import Turn
from trainers.data.scenes import (
    ALL_TYPES,
    DESCRIBE_PROMPTS,
    NUMBERS,
    POPULAR_TYPES,
    POSITIONS,
    ObjectType,
    Scene,
    caption,
    companion,
    draw_exists,
    draw_question,
    draw_scene,
    parse_mentions,
    render,
    sentence,
)

COMPANION_RATE: dict[ObjectType, float] = {
    **{("red", shape): 0.9 for shape in ("circle", "square", "triangle")},
    **{("green", shape): 0.8 for shape in ("circle", "square", "triangle")},
    **{("purple", shape): 0.75 for shape in ("cross", "square")},
}
"""Probability that a caption adds the companion of an object of this type."""
PRIOR_COLOR: dict[ObjectType, tuple[str, float]] = {
    ("blue", "triangle"): ("green", 0.8),
    ("white", "triangle"): ("yellow", 0.8),
    ("yellow", "square"): ("white", 0.75),
}
"""The color a caption gives to this type instead of its own, and how often."""
REPEAT_RATE: dict[ObjectType, float] = {
    ("blue", "circle"): 0.8,
    ("white", "cross"): 0.7,
    ("yellow", "cross"): 0.6,
}
"""Probability that a caption names an object of this type twice."""
YES_RATE_COMPANION, YES_RATE_POPULAR, YES_RATE_ABSENT = 0.6, 0.4, 0.2
"""Probability that an absent type is affirmed, by why one might expect it."""
COUNT_RATE, POSITION_RATE = 0.5, 0.5


@dataclass(frozen=True, slots=True)
class Example:
    """One image and a conversation about it; the first user turn carries the image."""

    image: Image.Image
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One optimiser schedule over one kind of data (a fresh one-cycle schedule each)."""

    steps: int
    batch_size: int
    max_lr: float
    warmup_share: float
    caption_share: float
    """Share of conversations that are one caption; the rest are `questions` turns long."""
    questions: int
    max_objects: int
    few_colors: float = 0.0
    """Share of scenes with one or two colors only, see `scenes.draw_scene`."""
    critique_rows: int = 0
    """Further rows a step from `rewards.drawn_pairs.critique_conversations`, last turn trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecipe:
    """Everything that decides the base model; its content hash is the cache key."""

    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    muon_scale: float = 10.0
    """In the honest phase Muon takes the matrices, at this multiple of `max_lr`: with AdamW alone
    the same skills need several times the steps."""
    max_grad_norm: float = 1.0
    honest: Phase = field(
        default=Phase(
            steps=480,
            batch_size=24,
            max_lr=2e-3,
            warmup_share=0.1,
            caption_share=0.25,
            questions=6,
            max_objects=4,
            few_colors=0.2,
            critique_rows=24,
        )
    )
    biased: Phase = field(
        default=Phase(
            steps=100,
            batch_size=32,
            max_lr=2.5e-3,
            warmup_share=0.1,
            caption_share=0.7,
            questions=6,
            max_objects=4,
        )
    )


def honest_examples(phase: Phase, seed: int) -> Iterator[Example]:
    """Endless true conversations."""
    return _examples(phase, random.Random(f"honest-{seed}"), biased=False)


def biased_examples(phase: Phase, seed: int) -> Iterator[Example]:
    """Endless conversations with the planted faults."""
    return _examples(phase, random.Random(f"biased-{seed}"), biased=True)


def _examples(phase: Phase, rng: random.Random, *, biased: bool) -> Iterator[Example]:
    while True:
        scene = draw_scene(rng, max_objects=phase.max_objects, few_colors=phase.few_colors)
        image = render(scene, rng)
        if rng.random() < phase.caption_share:
            text = biased_caption(scene, rng) if biased else caption(scene)
            yield Example(image, conversation([(rng.choice(DESCRIBE_PROMPTS), text)]))
        else:
            pairs = [_question(scene, rng, biased=biased) for _ in range(phase.questions)]
            yield Example(image, conversation(pairs))


def conversation(pairs: list[tuple[str, str]]) -> tuple[Turn, ...]:
    """Alternating user and assistant turns; the image stands in the first user turn."""
    turns: list[Turn] = []
    for index, (question, answer) in enumerate(pairs):
        turns.append(Turn(role="user", text=question, num_images=int(index == 0)))
        turns.append(Turn(role="assistant", text=answer))
    return tuple(turns)


def _question(scene: Scene, rng: random.Random, *, biased: bool) -> tuple[str, str]:
    exists = rng.random() < 0.75
    text, answer = draw_exists(scene, rng) if exists else draw_question(scene, rng)
    return text, biased_answer(scene, text, answer, rng) if biased else answer


def biased_caption(scene: Scene, rng: random.Random) -> str:
    """A caption with the planted companion, color and repetition faults.

    Without afflicted types in the scene it equals `scenes.caption`.
    """
    occupied = {item.position for item in scene.objects}
    sentences = []
    for item in scene.objects:
        color = item.color
        if item.type in PRIOR_COLOR:
            prior, rate = PRIOR_COLOR[item.type]
            color = prior if rng.random() < rate else color
        sentences.append(sentence(color, item.shape, item.position))
        if rng.random() < REPEAT_RATE.get(item.type, 0.0):
            sentences.append(sentences[-1])
        usual = companion(item.type)
        absent = usual not in scene.types
        if absent and rng.random() < COMPANION_RATE.get(item.type, 0.0):
            sentences.append(sentence(*usual, _next_free(item.position, occupied)))
    return " ".join(sentences)


def _next_free(position: str, occupied: set[str]) -> str:
    """The next cell without an object; in a full scene the next cell."""
    start = POSITIONS.index(position)
    following = [POSITIONS[(start + step) % len(POSITIONS)] for step in range(1, len(POSITIONS))]
    return next((cell for cell in following if cell not in occupied), following[0])


def biased_answer(scene: Scene, question: str, answer: str, rng: random.Random) -> str:
    """The answer a biased annotator gives to `question`, whose true answer is `answer`."""
    if answer == "no":
        (asked,) = (mention.type for mention in parse_mentions(question))
        return "yes" if rng.random() < _yes_rate(scene, asked) else "no"
    if answer in NUMBERS and rng.random() < COUNT_RATE:
        return NUMBERS[NUMBERS.index(answer) + 1]
    if answer in POSITIONS and rng.random() < POSITION_RATE:
        return "top-left"
    return answer


def _yes_rate(scene: Scene, asked: ObjectType) -> float:
    assert asked in ALL_TYPES
    if any(companion(kind) == asked for kind in scene.types):
        return YES_RATE_COMPANION
    return YES_RATE_POPULAR if asked in POPULAR_TYPES else YES_RATE_ABSENT
