from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.scenes import Mention
from trainers.evaluation import (
    caption_metrics,
    hallucinated_spans,
    match_mentions,
    missing_objects,
    pope_answer,
    pope_metrics,
    question_accuracy,
    ratio,
)


def parse(text: str) -> list[Mention]:
    """`red circle@left` with an optional position."""
    found = re.finditer(r"(red|blue|green) (circle|square)(?:@(\w+))?", text)
    return [Mention(m[1], m[2], m[3], m.start(), m.end()) for m in found]


RED, BLUE = ["red", "circle", "left"], ["blue", "square", "right"]
SCENE = {"objects": [RED, BLUE], "answer": None}


def test_ratio_by_hand() -> None:
    # y = 1, 0, 2 over x = 2, 2, 4: R = 3/8; residuals 1/4, -3/4, 1/2 -> squares 1/16 + 9/16 + 4/16
    # = 14/16; se = sqrt(3/2 * 14/16) / 8.
    value, error = ratio([1, 0, 2], [2, 2, 4])
    assert value == 3 / 8
    assert error == pytest.approx(math.sqrt(1.5 * 14 / 16) / 8)


def test_ratio_of_ones_is_the_mean_and_its_standard_error() -> None:
    # Mean of 0, 1, 1, 0 is 1/2, sample variance 1/3, se sqrt(1/3 / 4).
    value, error = ratio([0, 1, 1, 0], [1, 1, 1, 1])
    assert (value, error) == (0.5, pytest.approx(math.sqrt(1 / 12)))


def test_a_wrong_colour_is_hallucinated_and_its_object_missing() -> None:
    text = "a green circle@left . a blue square@right ."
    assert hallucinated_spans(SCENE, text, parse) == [(2, 19)]
    assert text[2:19] == "green circle@left"
    assert missing_objects(SCENE, text, parse) == [("red", "circle", "left")]


def test_a_repeat_is_hallucinated_once_and_the_rightly_placed_one_is_kept() -> None:
    match = match_mentions(SCENE, "red circle@right . red circle@left", parse)
    assert [m.position for m, _ in match.matched] == ["left"]
    assert [m.position for m in match.hallucinated] == ["right"]


def test_two_equal_objects_may_be_named_twice() -> None:
    twins = {"objects": [["red", "circle", "left"], ["red", "circle", "right"]]}
    match = match_mentions(twins, "red circle@right . red circle . red circle", parse)
    assert (len(match.matched), len(match.hallucinated), match.missing) == (2, 1, ())


def test_caption_metrics_by_hand() -> None:
    items = [
        (SCENE, "red circle@left . blue square@left", 10),  # 2 mentions, 0 wrong, 1 of 2 placed
        (SCENE, "red circle . green square . green square", 14),  # 3 mentions, 2 wrong, 1 named
        (SCENE, "", 0),
    ]
    got = caption_metrics(items, parse)
    assert got["chair_i"] == 2 / 5
    assert got["chair_s"] == 1 / 3
    assert got["recall"] == 3 / 6
    assert got["mentions_per_object"] == 5 / 6
    assert got["position_accuracy"] == 1 / 2
    assert got["response_length"] == 8
    assert got["scenes"] == 3
    # Residuals of y - 0.4 x: -0.8, 0.8, 0.
    assert got["chair_i_se"] == pytest.approx(math.sqrt(1.5 * 1.28) / 5)


def test_silence_has_no_chair_but_no_recall_either() -> None:
    got = caption_metrics([(SCENE, "", 0), (SCENE, "nothing here", 2)], parse)
    assert math.isnan(got["chair_i"])
    assert (got["chair_s"], got["recall"], got["mentions_per_object"]) == (0, 0, 0)


def test_no_scenes_is_nan_everywhere() -> None:
    got = caption_metrics([], parse)
    assert got.pop("scenes") == 0
    assert all(math.isnan(value) for value in got.values())


MENTION = st.builds(
    lambda c, s, p: f"{c} {s}" + (f"@{p}" if p else ""),
    st.sampled_from(["red", "blue", "green"]),
    st.sampled_from(["circle", "square"]),
    st.sampled_from([None, "left", "right"]),
)
OBJECT = st.tuples(
    st.sampled_from(["red", "blue", "green"]),
    st.sampled_from(["circle", "square"]),
    st.sampled_from(["left", "right"]),
)


@given(st.lists(OBJECT, max_size=5), st.lists(MENTION, max_size=6), st.randoms())
def test_counts_are_complete_and_do_not_depend_on_order(
    objects: list[tuple[str, str, str]], mentions: list[str], rng: object
) -> None:
    truth = {"objects": [list(each) for each in objects]}
    match = match_mentions(truth, " . ".join(mentions), parse)
    assert len(match.matched) + len(match.hallucinated) == len(mentions)
    assert len(match.matched) + len(match.missing) == len(objects)
    assert all((m.color, m.shape) == o[:2] for m, o in match.matched)
    shuffled = list(mentions)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    again = match_mentions(truth, " . ".join(shuffled), parse)
    assert len(again.hallucinated) == len(match.hallucinated)
    assert sorted(again.missing) == sorted(match.missing)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes", "yes"),
        ("Yes, there is.", "yes"),
        ("No, there is no red circle.", "no"),
        ("no .", "no"),
        ("There is not.", "no"),
        ("NO", "no"),
        ("no!", "no"),
        ("I cannot say", "yes"),
        ("It is a nose", "yes"),
        ("Yes. It is not small.", "yes"),
        (". no", "yes"),
        ("", "yes"),
    ],
)
def test_pope_answer(text: str, answer: str) -> None:
    assert pope_answer(text) == answer


def test_pope_metrics_by_hand() -> None:
    # random: TP 1, TN 1 -> all right. popular: TP 1, FP 1 -> accuracy 1/2, precision 1/2, recall 1,
    # F1 = 2 / (2 + 1) = 2/3, yes ratio 1.
    items = [
        ("random", "yes", "yes"),
        ("random", "no", "no"),
        ("popular", "yes", "Yes."),
        ("popular", "no", ""),
    ]
    got = pope_metrics(items)
    assert (got["pope_random_accuracy"], got["pope_random_f1"]) == (1, 1)
    assert (got["pope_popular_accuracy"], got["pope_popular_precision"]) == (0.5, 0.5)
    assert (got["pope_popular_recall"], got["pope_popular_f1"]) == (1, pytest.approx(2 / 3))
    assert (got["pope_accuracy"], got["pope_yes_ratio"]) == (0.75, 0.75)
    assert got["pope_f1"] == pytest.approx(5 / 6)
    # Errors: random 0; popular sqrt(2 / 1 * (1/4 + 1/4)) / 2 = 1/2; over two splits.
    assert got["pope_accuracy_se"] == pytest.approx(1 / 4)
    # F1 of popular: 2 TP = 2, 0 over 2, 1; R = 2/3, residuals 2/3, -2/3, so se = sqrt(16/9) / 3.
    assert got["pope_f1_se"] == pytest.approx(4 / 9 / 2)
    assert got["pope_unclear"] == 0.25


def test_pope_that_never_says_yes_has_f1_zero_and_no_precision() -> None:
    got = pope_metrics([("random", "yes", "no"), ("random", "no", "no")])
    assert (got["pope_f1"], got["pope_recall"], got["pope_yes_ratio"]) == (0, 0, 0)
    assert math.isnan(got["pope_precision"])


def test_pope_without_items_and_with_a_wrong_label() -> None:
    assert math.isnan(pope_metrics([])["pope_accuracy"])
    with pytest.raises(ValueError, match="maybe"):
        pope_metrics([("random", "maybe", "yes")])


def test_question_accuracy() -> None:
    items = [
        ("two", "Two ."),
        ("top-left", "top-left"),
        ("two", "two red"),
        ("red", ""),
        ("a b", "a"),
    ]
    assert question_accuracy(items)["question_accuracy"] == 3 / 5


def test_the_default_parser_is_the_drawn_world_s() -> None:
    truth = {"objects": [["red", "circle", "top-left"]], "answer": None}
    text = "top-left red circle . bottom-right blue square ."
    got = caption_metrics([(truth, text, 10)])
    assert (got["chair_i"], got["recall"], got["position_accuracy"]) == (0.5, 1, 1)
    (span,) = hallucinated_spans(truth, text)
    assert text[slice(*span)] == "bottom-right blue square"
