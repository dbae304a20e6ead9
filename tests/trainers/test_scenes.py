"""The drawn world: ground truth, text, images and questions agree with each other."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainers.data import scenes
from trainers.data.scenes import Mention, Scene, Shape

SCENE = Scene((Shape("red", "circle", "top-left"), Shape("blue", "cross", "center")))
seeds = st.integers(min_value=0, max_value=2**32)


def test_caption_by_hand() -> None:
    assert scenes.caption(SCENE) == "a red circle top-left . a blue cross center ."


def test_mentions_by_hand() -> None:
    #       0123456789012345678
    text = "a red circle top . is a blue cross , red red ring circle"
    assert scenes.parse_mentions(text) == [
        Mention("red", "circle", "top", 2, 16),
        Mention("blue", "cross", None, 24, 34),
        Mention("red", "ring", None, 41, 49),
    ]
    assert text[2:16] == "red circle top"


def test_longer_position_wins() -> None:
    assert scenes.parse_mentions("a red ring top-left .")[0].position == "top-left"
    assert scenes.parse_mentions("a red ring topper .")[0].position is None
    assert scenes.parse_mentions("many red rings") == []


@given(seeds)
def test_caption_mentions_are_the_objects(seed: int) -> None:
    scene = scenes.draw_scene(random.Random(seed), max_objects=9)
    found = [Shape(m.color, m.shape, m.position or "") for m in scenes.parse_mentions(
        scenes.caption(scene))]  # fmt: skip
    assert tuple(found) == scene.objects
    assert scenes.scene_from_truth(scene.truth("yes")) == scene


@given(seeds)
def test_scene_limits(seed: int) -> None:
    scene = scenes.draw_scene(random.Random(seed), min_objects=2, max_objects=4)
    positions = [scenes.POSITIONS.index(o.position) for o in scene.objects]
    assert 2 <= len(positions) <= 4
    assert positions == sorted(set(positions))


def test_companion_is_a_bijection_without_fixed_points() -> None:
    images = [scenes.companion(kind) for kind in scenes.ALL_TYPES]
    assert sorted(images) == sorted(scenes.ALL_TYPES)
    assert all(image != kind for image, kind in zip(images, scenes.ALL_TYPES, strict=True))


def test_render_is_seeded_and_jittered() -> None:
    first, again, other = (scenes.render(SCENE, random.Random(seed)) for seed in (1, 1, 2))
    assert first.size == (scenes.IMAGE_SIZE, scenes.IMAGE_SIZE)
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_render_puts_the_color_in_the_cell() -> None:
    image = scenes.render(Scene((Shape("red", "square", "bottom-right"),)), random.Random(0))
    center = 2.5 * scenes.CELL
    red, green, blue = image.getpixel((int(center), int(center)))  # type: ignore[misc]
    assert red > 150 > 60 > max(green, blue)


@given(seeds)
def test_answers_follow_from_the_scene(seed: int) -> None:
    rng = random.Random(seed)
    scene = scenes.draw_scene(rng)
    text, answer = scenes.draw_exists(scene, rng)
    (asked,) = scenes.parse_mentions(text)
    assert (answer == "yes") == (asked.type in scene.types)
    text, answer = scenes.draw_question(scene, rng)
    words = text.split()
    if words[0] == "how":
        count = sum(scenes.plural(o.shape) == words[2] for o in scene.objects)
        assert answer == scenes.NUMBERS[count]
    elif words[0] == "where":
        assert [o.position for o in scene.objects if list(o.type) == words[3:5]] == [answer]
    else:
        assert [o.color for o in scene.objects if o.position == words[6]] == [answer]


def test_samples_are_reproducible_and_in_proportion() -> None:
    def build() -> tuple[list[scenes.Sample], list[Image.Image]]:
        store: list[Image.Image] = []

        def put(image: Image.Image) -> str:
            store.append(image)
            return str(len(store))

        return list(scenes.scene_samples(3, 40, put)), store

    first, images = build()
    assert first == build()[0]
    assert len(images) == 40
    assert Counter(s.kind for s in first) == {"describe": 28, "question": 6, "exists": 6}
    assert all(s.prompt[0].num_images == 1 == len(s.images) for s in first)
    assert all((s.truth or {})["answer"] is None for s in first if s.kind == "describe")


def test_held_out_scenes_are_fixed() -> None:
    first, again = scenes.held_out_scenes(5), scenes.held_out_scenes(5)
    assert [s for s, _ in first] == [s for s, _ in again]
    assert [i.tobytes() for _, i in first] == [i.tobytes() for _, i in again]
    assert [s for s, _ in first] != [s for s, _ in scenes.held_out_scenes(5, seed=1)]


@given(seeds, st.sampled_from(["random", "popular", "adversarial"]))
def test_pope_is_balanced_and_true(seed: int, split: scenes.Split) -> None:
    rng = random.Random(seed)
    scene = scenes.draw_scene(rng)
    questions = scenes.pope_questions(scene, split, rng)
    labels = Counter(label for _, label in questions)
    assert labels["yes"] == labels["no"] <= 3
    assert len(set(questions)) == len(questions)
    for text, label in questions:
        (asked,) = scenes.parse_mentions(text)
        assert (label == "yes") == (asked.type in scene.types)
        if label == "no" and split == "popular":
            assert asked.type in scenes.POPULAR_TYPES
        if label == "no" and split == "adversarial":
            assert asked.type in {scenes.companion(kind) for kind in scene.types}
