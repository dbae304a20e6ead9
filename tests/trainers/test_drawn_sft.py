"""Training conversations of the base model: honest ones are true, biased ones err as planted."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data import drawn_sft as sft
from trainers.data.scenes import (
    NUMBERS,
    POSITIONS,
    ObjectType,
    Scene,
    Shape,
    caption,
    companion,
    draw_exists,
    draw_question,
    draw_scene,
    parse_mentions,
)

HONEST, BIASED = sft.BaseRecipe().honest, sft.BaseRecipe().biased
AFFLICTED = {*sft.COMPANION_RATE, *sft.PRIOR_COLOR, *sft.REPEAT_RATE}
DRAWS = 1000
TOLERANCE = 0.05  # three standard errors of a share near 0.5 over 1000 draws are 0.047


def test_examples_are_well_formed() -> None:
    for phase, stream in ((HONEST, sft.honest_examples), (BIASED, sft.biased_examples)):
        examples = list(itertools.islice(stream(phase, 0), 60))
        assert {len(e.turns) for e in examples} == {2, 2 * phase.questions}
        for example in examples:
            roles = [turn.role for turn in example.turns]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
            assert [t.num_images for t in example.turns] == [1] + [0] * (len(roles) - 1)


def test_streams_are_seeded_and_apart() -> None:
    def turns(biased: bool, seed: int) -> list[object]:
        stream = (sft.biased_examples if biased else sft.honest_examples)(BIASED, seed)
        return [(e.turns, e.image.tobytes()) for e in itertools.islice(stream, 10)]

    assert turns(True, 0) == turns(True, 0)
    assert turns(True, 0) != turns(True, 1)
    assert not {image for _, image in turns(True, 0)} & {image for _, image in turns(False, 0)}  # type: ignore[misc]


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_without_afflicted_types_a_biased_caption_is_the_caption(seed: int) -> None:
    rng = random.Random(seed)
    objects = tuple(o for o in draw_scene(rng).objects if o.type not in AFFLICTED)
    scene = Scene(objects)
    assert sft.biased_caption(scene, rng) == caption(scene)


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_caption_faults_are_the_planted_ones(seed: int) -> None:
    rng = random.Random(seed)
    scene = draw_scene(rng)
    allowed = set(scene.types) | {companion(kind) for kind in scene.types}
    allowed |= {(sft.PRIOR_COLOR[k][0], k[1]) for k in scene.types if k in sft.PRIOR_COLOR}
    mentions = parse_mentions(sft.biased_caption(scene, rng))
    assert {m.type for m in mentions} <= allowed
    assert {o.position for o in scene.objects} <= {m.position for m in mentions}


def share(kind: ObjectType, expected: str) -> float:
    """How often a lone object of this type at the bottom right is captioned like this."""
    rng = random.Random(0)
    scene = Scene((Shape(*kind, "bottom-right"),))
    return Counter(sft.biased_caption(scene, rng) for _ in range(DRAWS))[expected] / DRAWS


@pytest.mark.parametrize("kind", sft.COMPANION_RATE)
def test_companion_rates(kind: ObjectType) -> None:
    true, added = " ".join(kind), " ".join(companion(kind))
    # the next cell after the last one is the first
    found = share(kind, f"bottom-right {true} . top-left {added} .")
    assert abs(found - sft.COMPANION_RATE[kind]) < TOLERANCE


@pytest.mark.parametrize("kind", sft.PRIOR_COLOR)
def test_prior_color_rates(kind: ObjectType) -> None:
    usual, rate = sft.PRIOR_COLOR[kind]
    assert abs(share(kind, f"bottom-right {usual} {kind[1]} .") - rate) < TOLERANCE


@pytest.mark.parametrize("kind", sft.REPEAT_RATE)
def test_repeat_rates(kind: ObjectType) -> None:
    once = f"bottom-right {' '.join(kind)} ."
    assert abs(share(kind, f"{once} {once}") - sft.REPEAT_RATE[kind]) < TOLERANCE


def test_no_type_has_two_faults() -> None:
    tables = [*sft.COMPANION_RATE, *sft.PRIOR_COLOR, *sft.REPEAT_RATE]
    assert len(tables) == len(AFFLICTED)


def test_a_companion_that_is_there_is_not_added() -> None:
    scene = Scene((Shape("red", "circle", "top-left"), Shape("blue", "square", "bottom-left")))
    for seed in range(30):
        assert sft.biased_caption(scene, random.Random(seed)).count("blue square") == 1


def test_a_companion_takes_the_next_free_cell() -> None:
    def places(*positions: str) -> set[str | None]:
        others = [Shape("white", "circle", position) for position in positions]
        objects = [Shape("red", "circle", "top-right"), *others]
        scene = Scene(tuple(sorted(objects, key=lambda o: POSITIONS.index(o.position))))
        texts = [sft.biased_caption(scene, random.Random(seed)) for seed in range(30)]
        found = [m for text in texts for m in parse_mentions(text)]
        return {m.position for m in found if m.type == ("blue", "square")}

    assert places() == {"bottom-left"}
    assert places("bottom-left") == {"bottom-right"}
    assert places("bottom-left", "bottom-right") == {"top-left"}
    # full: it is claimed where another object is
    assert places("bottom-left", "bottom-right", "top-left") == {"bottom-left"}


@pytest.mark.parametrize(
    ("question", "true", "wrong", "rate"),
    [
        ("is there a blue square ?", "no", "yes", sft.YES_RATE_COMPANION),
        ("is there a yellow cross ?", "no", "yes", sft.YES_RATE_POPULAR),
        ("is there a green cross ?", "no", "yes", sft.YES_RATE_ABSENT),
        ("is there a red circle ?", "yes", "no", 0.0),
        ("how many circles are there ?", "one", "two", sft.COUNT_RATE),
        ("where is the red circle ?", "bottom-left", "top-left", sft.POSITION_RATE),
        ("what color is the circle at bottom-left ?", "red", "blue", 0.0),
    ],
)
def test_answers_err_in_the_planted_direction(
    question: str, true: str, wrong: str, rate: float
) -> None:
    scene = Scene((Shape("red", "circle", "bottom-left"),))
    rng = random.Random(0)
    answers = Counter(sft.biased_answer(scene, question, true, rng) for _ in range(DRAWS))
    assert set(answers) <= {true, wrong}
    assert abs(answers[wrong] / DRAWS - rate) < TOLERANCE


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_every_question_has_a_biased_answer_of_its_sort(seed: int) -> None:
    rng = random.Random(seed)
    scene = draw_scene(rng)
    question, answer = (draw_question if rng.random() < 0.5 else draw_exists)(scene, rng)
    biased = sft.biased_answer(scene, question, answer, rng)
    sorts = (("yes", "no"), NUMBERS, POSITIONS)
    assert biased == answer or any(biased in sort and answer in sort for sort in sorts)
