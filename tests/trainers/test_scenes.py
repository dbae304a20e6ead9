"""The drawn world: ground truth, text, images and questions agree with each other."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainers.data import scenes
from trainers.data.scenes import CELL, POSITIONS, Mention, Scene, Shape

SCENE = Scene((Shape("red", "circle", "top-left"), Shape("blue", "cross", "bottom-right")))
seeds = st.integers(min_value=0, max_value=2**32)


def content_hash(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def test_caption_by_hand() -> None:
    assert scenes.caption(SCENE) == "top-left red circle . bottom-right blue cross ."


def test_mentions_by_hand() -> None:
    text = "top-left red circle . is a blue cross , red red square circle"
    #       0                  19      27        37     44        54
    assert scenes.parse_mentions(text) == [
        Mention("red", "circle", "top-left", 0, 19),
        Mention("blue", "cross", None, 27, 37),
        Mention("red", "square", None, 44, 54),
    ]
    assert text[0:19] == "top-left red circle"


@pytest.mark.parametrize("text", ["many red circles", "tired circle", "red circle.", "red", ""])
def test_only_whole_words_are_mentions(text: str) -> None:
    assert scenes.parse_mentions(text) == []


def test_an_unknown_place_is_no_place() -> None:
    (mention,) = scenes.parse_mentions("topmost-left a red cross . top-left red")
    assert (mention.type, mention.position) == (("red", "cross"), None)


@settings(deadline=None)
@given(seeds)
def test_caption_mentions_are_the_objects(seed: int) -> None:
    scene = scenes.draw_scene(random.Random(seed))
    mentions = scenes.parse_mentions(scenes.caption(scene))
    assert tuple(Shape(m.color, m.shape, m.position or "") for m in mentions) == scene.objects
    assert scenes.scene_from_truth(scene.truth("yes")) == scene


@settings(deadline=None)
@given(seeds, st.integers(1, 4))
def test_scene_limits(seed: int, most: int) -> None:
    scene = scenes.draw_scene(random.Random(seed), max_objects=most)
    places = [POSITIONS.index(o.position) for o in scene.objects]
    assert 1 <= len(places) <= most
    assert places == sorted(set(places))


def test_popular_types_are_drawn_more_often() -> None:
    rng = random.Random(0)
    drawn = Counter(kind for _ in range(2000) for kind in scenes.draw_scene(rng).types)
    popular = [drawn[kind] for kind in scenes.POPULAR_TYPES]
    others = [drawn[kind] for kind in scenes.ALL_TYPES if kind not in scenes.POPULAR_TYPES]
    # 0.25 / 6 + 0.75 / 24 = 0.073 against 0.75 / 24 = 0.031 of about 5000 objects
    assert min(popular) > max(others)


def test_companion_is_a_bijection_without_fixed_points() -> None:
    images = [scenes.companion(kind) for kind in scenes.ALL_TYPES]
    assert sorted(images) == sorted(scenes.ALL_TYPES)
    assert all(image != kind for image, kind in zip(images, scenes.ALL_TYPES, strict=True))
    # both tables wrap around: white + 2 colors is green, after the cross comes the circle
    assert scenes.companion(("white", "cross")) == ("green", "circle")


def test_render_is_seeded_and_jittered() -> None:
    first, again, other = (scenes.render(SCENE, random.Random(seed)) for seed in (1, 1, 2))
    assert first.size == (scenes.IMAGE_SIZE, scenes.IMAGE_SIZE)
    assert first.tobytes() == again.tobytes() != other.tobytes()


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_objects_fill_their_own_cells_only(seed: int) -> None:
    rng = random.Random(seed)
    scene = scenes.draw_scene(rng)
    image = scenes.render(scene, rng)
    for index, position in enumerate(POSITIONS):
        row, column = divmod(index, 2)
        left, top = column * CELL, row * CELL
        # without the outermost pixels, onto which a neighbour's edge may be rounded
        cell = image.crop((left + 1, top + 1, left + CELL - 1, top + CELL - 1))
        brightest = max(high for _, high in cell.getextrema())  # type: ignore[misc]
        here = [o for o in scene.objects if o.position == position]
        # a background channel is at most 70 + 10 + 8, an object's strongest at least 0.85 * 190
        assert (brightest > 88) == bool(here)
        # 3 pixels of jitter keep the cell's middle inside every shape but the thin cross
        if here and here[0].shape != "cross":
            pixel = image.getpixel((left + CELL // 2, top + CELL // 2))
            assert nearest_color(pixel) == here[0].color  # type: ignore[arg-type]


def nearest_color(pixel: tuple[int, int, int]) -> str:
    def distance(color: str) -> int:
        return sum((a - b) ** 2 for a, b in zip(pixel, scenes._RGB[color], strict=True))

    return min(scenes.COLORS, key=distance)


@settings(deadline=None)
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


def test_half_of_the_existence_questions_are_true() -> None:
    rng = random.Random(0)
    answers = [scenes.draw_exists(scenes.draw_scene(rng), rng)[1] for _ in range(2000)]
    assert abs(answers.count("yes") / 2000 - 0.5) < 0.04  # three standard errors are 0.034


def test_a_count_is_always_below_the_last_number() -> None:
    # the planted fault answers one too many: the fullest scene must leave a word for that
    full = Scene(tuple(Shape("red", "cross", position) for position in POSITIONS))
    rng = random.Random(0)
    answers = {a for q, a in (scenes.draw_question(full, rng) for _ in range(100)) if "how" in q}
    assert answers == {"four", "zero"}
    assert scenes.NUMBERS[-1] == "five"


def test_samples_are_reproducible_and_in_proportion() -> None:
    first = list(scenes.scene_samples(3, 40, content_hash))
    assert first == list(scenes.scene_samples(3, 40, content_hash))
    assert len({s.images for s in first}) == 40
    assert Counter(s.kind for s in first) == {"describe": 28, "question": 6, "exists": 6}
    assert all(s.prompt[0].num_images == 1 == len(s.images) for s in first)
    assert all(((s.truth or {})["answer"] is None) == (s.kind == "describe") for s in first)


def test_held_out_scenes_are_fixed_and_apart_from_training() -> None:
    first, again = scenes.held_out_scenes(20), scenes.held_out_scenes(20)
    assert [s for s, _ in first] == [s for s, _ in again]
    hashes = [content_hash(image) for _, image in first]
    assert hashes == [content_hash(image) for _, image in again]
    assert [s for s, _ in first] != [s for s, _ in scenes.held_out_scenes(20, seed=1)]
    training = {
        s.images[0] for seed in (0, 1, 2) for s in scenes.scene_samples(seed, 40, content_hash)
    }
    assert not training & set(hashes)


@settings(deadline=None)
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


def test_few_colors_leaves_one_or_two() -> None:
    rng = random.Random(0)
    drawn = [scenes.draw_scene(rng, few_colors=1.0) for _ in range(200)]
    assert max(len({o.color for o in scene.objects}) for scene in drawn) == 2
    assert {len(scene.objects) for scene in drawn} == {1, 2, 3, 4}
    # off: the same scenes as ever
    plain = [scenes.draw_scene(random.Random(n)) for n in range(50)]
    assert plain == [scenes.draw_scene(random.Random(n), few_colors=0.0) for n in range(50)]


def test_a_third_of_the_absent_types_mix_color_and_shape_of_what_is_there() -> None:
    scene = scenes.Scene(
        (
            scenes.Shape("red", "circle", "top-left"),
            scenes.Shape("white", "cross", "bottom-left"),
        )
    )
    rng = random.Random(0)
    asked = [scenes.draw_exists(scene, rng) for _ in range(6000)]
    absent = [text for text, answer in asked if answer == "no"]
    mixed = [scenes.exists_question(kind) for kind in (("red", "cross"), ("white", "circle"))]
    usual = [scenes.exists_question(scenes.companion(kind)) for kind in scene.types]
    # a third each, and 2 of the 22 absent types when any is drawn
    assert sum(text in mixed for text in absent) / len(absent) == pytest.approx(0.364, abs=0.03)
    assert sum(text in usual for text in absent) / len(absent) == pytest.approx(0.364, abs=0.03)
