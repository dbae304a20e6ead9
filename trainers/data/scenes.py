"""The drawn world: images of coloured shapes whose ground truth is known exactly.

A scene holds one to four objects, each with a color, a shape and one cell of a 2x2 grid. It is
drawn with Pillow, with jitter of place, size, brightness and background, so that no two images of
one scene are equal and memorising is useless. From the scene follow its caption, the answers to
questions about it, and POPE-style existence questions (arXiv 2305.10355).

All text is lower case and separated by single spaces; every word is one token of
`trainers.data.drawn_model`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image, ImageDraw

from trainers.data.records import Sample, Turn

COLORS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "cross")
POSITIONS = ("top-left", "top-right", "bottom-left", "bottom-right")
NUMBERS = ("zero", "one", "two", "three", "four", "five")
DESCRIBE_PROMPTS = (
    "describe the image .",
    "what is in the image ?",
    "list the objects .",
    "what do you see ?",
)
IMAGE_SIZE = 64
CELL = IMAGE_SIZE // 2

_RGB = {
    "red": (225, 35, 35),
    "green": (35, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (240, 220, 40),
    "purple": (165, 50, 190),
    "white": (245, 245, 245),
}

ObjectType = tuple[str, str]
"""(color, shape): what CHAIR and POPE count; the position is not part of it."""
Split = Literal["random", "popular", "adversarial"]
ALL_TYPES: tuple[ObjectType, ...] = tuple((c, s) for c in COLORS for s in SHAPES)
POPULAR_TYPES: tuple[ObjectType, ...] = (
    ("red", "circle"),
    ("blue", "square"),
    ("green", "triangle"),
    ("yellow", "cross"),
    ("purple", "circle"),
    ("white", "square"),
)
"""Types drawn more often than the rest: the absent objects of POPE's popular split."""
POPULAR_SHARE = 0.25


def companion(kind: ObjectType) -> ObjectType:
    """The type that the planted bias associates with `kind`: two colors on, next shape.

    A bijection without fixed points: `companion(("red", "circle")) == ("blue", "square")`.
    """
    color, shape = kind
    return (
        COLORS[(COLORS.index(color) + 2) % len(COLORS)],
        SHAPES[(SHAPES.index(shape) + 1) % len(SHAPES)],
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """One drawn object, for example `Shape("red", "circle", "top-left")`."""

    color: str
    shape: str
    position: str

    @property
    def type(self) -> ObjectType:
        """Color and shape, without the place."""
        return (self.color, self.shape)


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects at distinct positions, in reading order (row by row, left to right)."""

    objects: tuple[Shape, ...]

    def truth(self, answer: str | None = None) -> dict[str, Any]:
        """The ground truth as `Sample.truth` holds it (plain values only)."""
        objects = [[o.color, o.shape, o.position] for o in self.objects]
        return {"objects": objects, "answer": answer}

    @property
    def types(self) -> tuple[ObjectType, ...]:
        """The type of every object, in reading order, repeats included."""
        return tuple(o.type for o in self.objects)


def scene_from_truth(truth: dict[str, Any]) -> Scene:
    """The inverse of `Scene.truth` (the answer is dropped)."""
    return Scene(tuple(Shape(*entry) for entry in truth["objects"]))


@dataclass(frozen=True, slots=True)
class Mention:
    """An object named in a text; `start` and `end` are its character span."""

    color: str
    shape: str
    position: str | None
    start: int
    end: int

    @property
    def type(self) -> ObjectType:
        """Color and shape, without the place."""
        return (self.color, self.shape)


_MENTION = re.compile(
    rf"(?<!\S)(?:(?P<position>{'|'.join(POSITIONS)}) )?"
    rf"(?P<color>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)})(?!\S)"
)


def parse_mentions(text: str) -> list[Mention]:
    """Every `[position] color shape` in `text`, from left to right, repeats included."""
    return [
        Mention(m["color"], m["shape"], m["position"], m.start(), m.end())
        for m in _MENTION.finditer(text)
    ]


def draw_scene(
    rng: random.Random, *, max_objects: int = len(POSITIONS), few_colors: float = 0.0
) -> Scene:
    """A random scene: number of objects uniform, positions distinct, types with repeats allowed.

    With probability `few_colors` all objects take one or two colors. In such scenes an object
    cannot be told from another by its color, so that a model trained on them has to look at the
    place.
    """
    cells = sorted(rng.sample(range(len(POSITIONS)), rng.randint(1, max_objects)))
    objects = []
    for cell in cells:
        kind = rng.choice(POPULAR_TYPES if rng.random() < POPULAR_SHARE else ALL_TYPES)
        objects.append(Shape(*kind, POSITIONS[cell]))
    if few_colors and rng.random() < few_colors:
        palette = rng.sample(COLORS, rng.choice((1, 2)))
        objects = [Shape(rng.choice(palette), o.shape, o.position) for o in objects]
    return Scene(tuple(objects))


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw `scene` as an RGB image of IMAGE_SIZE squared; `rng` decides the jitter only."""
    base = rng.randint(10, 70)
    background = tuple(max(0, base + rng.randint(-10, 10)) for _ in range(3))
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), background)
    draw = ImageDraw.Draw(image)
    for _ in range(3):  # faint bands, so that the background is not one flat color
        top, shade = rng.randrange(IMAGE_SIZE), rng.randint(-8, 8)
        band = tuple(max(0, channel + shade) for channel in background)
        draw.rectangle((0, top, IMAGE_SIZE, top + rng.randint(4, 16)), fill=band)
    for item in scene.objects:
        row, column = divmod(POSITIONS.index(item.position), 2)
        radius = rng.uniform(9.5, 13.0)
        x = (column + 0.5) * CELL + rng.uniform(-3.0, 3.0)
        y = (row + 0.5) * CELL + rng.uniform(-3.0, 3.0)
        gain = rng.uniform(0.85, 1.05)
        color = tuple(min(255, int(channel * gain)) for channel in _RGB[item.color])
        _draw_shape(draw, item.shape, x, y, radius, color)
    return image


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, color: tuple[int, ...]
) -> None:
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        draw.ellipse(box, fill=color)
    elif shape == "square":
        s = 0.88 * r
        draw.rectangle((x - s, y - s, x + s, y + s), fill=color)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=color)
    else:
        arm = 0.28 * r
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=color)
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=color)


def sentence(color: str, shape: str, position: str) -> str:
    """One object as captions name it, its place first."""
    return f"{position} {color} {shape} ."


def caption(scene: Scene) -> str:
    """The true description, one sentence an object, in reading order."""
    return " ".join(sentence(o.color, o.shape, o.position) for o in scene.objects)


def exists_question(kind: ObjectType) -> str:
    """The question of POPE, for example `is there a red circle ?`."""
    return f"is there a {kind[0]} {kind[1]} ?"


def draw_exists(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """An existence question and its true answer, `yes` in half of the draws.

    An absent type is, in about a third of the draws each, the companion of one that is there, one
    whose color and shape are both there but on different objects (else a model learns to look for
    the two words one by one), or any.
    """
    if rng.random() < 0.5:
        return exists_question(rng.choice(scene.types)), "yes"
    present = set(scene.types)
    colors, shapes = {c for c, _ in present}, {s for _, s in present}
    mixed = [t for t in ALL_TYPES if t[0] in colors and t[1] in shapes]
    pools = ([companion(t) for t in scene.types], mixed, ALL_TYPES)
    absent = [t for t in rng.choice(pools) if t not in present]
    if not absent:
        absent = [t for t in ALL_TYPES if t not in present]
    return exists_question(rng.choice(absent)), "no"


def draw_question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question on color, count or position, and its true one-word answer."""
    sort = rng.choice(("color", "count", "position"))
    item = rng.choice(scene.objects)
    if sort == "position" and scene.types.count(item.type) == 1:
        return f"where is the {item.color} {item.shape} ?", item.position
    if sort == "count":
        shape = item.shape if rng.random() < 0.75 else rng.choice(SHAPES)
        number = sum(o.shape == shape for o in scene.objects)
        return f"how many {plural(shape)} are there ?", NUMBERS[number]
    return f"what color is the {item.shape} at {item.position} ?", item.color


def plural(shape: str) -> str:
    """The word that counting questions use."""
    return shape + ("es" if shape == "cross" else "s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Shares of the three kinds of prompt; what is left over is `exists`."""

    describe: float = 0.7
    question: float = 0.15


def scene_samples(
    seed: int,
    count: int,
    put_image: Callable[[Image.Image], str],
    *,
    mixture: Mixture = Mixture(),
    max_objects: int = len(POSITIONS),
    few_colors: float = 0.0,
) -> Iterator[Sample]:
    """`count` prompts, each on a freshly drawn scene of its own.

    `put_image` stores an image and returns its content hash (the run's image store). The kinds are
    dealt in exact proportion, then shuffled; equal arguments give equal samples.
    """
    rng = random.Random(f"samples-{seed}")
    num_describe, num_question = round(mixture.describe * count), round(mixture.question * count)
    kinds = ["describe"] * num_describe + ["question"] * num_question
    kinds = (kinds + ["exists"] * (count - len(kinds)))[:count]
    rng.shuffle(kinds)
    for index, kind in enumerate(kinds):
        scene = draw_scene(rng, max_objects=max_objects, few_colors=few_colors)
        text, answer = _prompt(scene, kind, rng)
        yield Sample(
            id=f"scene-{seed}-{index}",
            prompt=(Turn(role="user", text=text, num_images=1),),
            images=(put_image(render(scene, rng)),),
            kind=kind,
            truth=scene.truth(answer),
        )


def _prompt(scene: Scene, kind: str, rng: random.Random) -> tuple[str, str | None]:
    if kind == "describe":
        return rng.choice(DESCRIBE_PROMPTS), None
    return draw_question(scene, rng) if kind == "question" else draw_exists(scene, rng)


def held_out_scenes(count: int = 500, seed: int = 0) -> list[tuple[Scene, Image.Image]]:
    """Evaluation scenes with their images; the random stream is apart from every training one."""
    rng = random.Random(f"held-out-{seed}")
    return [(scene := draw_scene(rng), render(scene, rng)) for _ in range(count)]


def pope_questions(
    scene: Scene, split: Split, rng: random.Random, *, per_label: int = 3
) -> list[tuple[str, str]]:
    """POPE questions on one scene: up to `per_label` present and equally many absent types.

    Absent types are uniform (`random`), the world's most frequent (`popular`), or the planted
    companions of what is present (`adversarial`). A split that runs out of candidates asks about
    fewer, on both sides, so that the labels stay balanced.
    """
    present = sorted(set(scene.types))
    pools: dict[str, tuple[ObjectType, ...] | list[ObjectType]] = {
        "random": ALL_TYPES,
        "popular": POPULAR_TYPES,
        "adversarial": sorted({companion(t) for t in present}),
    }
    absent = [t for t in pools[split] if t not in present]
    number = min(per_label, len(present), len(absent))
    yes = [(exists_question(t), "yes") for t in rng.sample(present, number)]
    return yes + [(exists_question(t), "no") for t in rng.sample(absent, number)]
