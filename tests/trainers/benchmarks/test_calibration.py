"""Calibration by hand, and what it separates: a planted bias from a planted blindness."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.benchmarks.calibration import (
    YesNo,
    calibrated,
    calibration_metrics,
    separation,
    share_of_yes,
    verdict,
)

MASS = st.floats(0.01, 1.0)


def item(p: float, prior: float, label: str = "yes") -> YesNo:
    return YesNo(label=label, with_image=(p, 1 - p), without_image=(prior, 1 - prior))  # type: ignore[arg-type]


def test_by_hand():
    # 0.6 / 0.8001 against 0.4 / 0.2001
    expected = (0.6 / 0.8001) / (0.6 / 0.8001 + 0.4 / 0.2001)
    assert calibrated(item(0.6, 0.8)) == pytest.approx(expected) == pytest.approx(0.2728, abs=1e-4)


@given(MASS)
def test_an_even_prior_changes_nothing(p):
    assert calibrated(item(p, 0.5)) == pytest.approx(p)


@given(st.floats(0.05, 0.95))
def test_an_image_that_says_nothing_leaves_one_half(p):
    assert calibrated(item(p, p)) == pytest.approx(0.5, abs=1e-3)


@given(MASS, MASS, st.floats(0.1, 1.0))
def test_mass_outside_yes_and_no_does_not_matter(yes, no, scale):
    assert share_of_yes((yes, no)) == pytest.approx(share_of_yes((scale * yes, scale * no)))


def test_no_mass_is_no_answer():
    with pytest.raises(ValueError, match="neither yes nor no"):
        share_of_yes((0.0, 0.0))


@pytest.mark.parametrize(
    ("scores", "labels", "value"),
    [
        ([0.9, 0.8, 0.2], ["yes", "yes", "no"], 1.0),
        ([0.1, 0.9], ["yes", "no"], 0.0),
        ([0.5, 0.5], ["yes", "no"], 0.5),
        ([0.9, 0.5, 0.5, 0.1], ["yes", "yes", "no", "no"], 0.875),  # 3 pairs of 4, and a tie
    ],
)
def test_separation_by_hand(scores, labels, value):
    assert separation(scores, labels) == value


def test_separation_needs_both_labels():
    assert math.isnan(separation([0.5, 0.6], ["yes", "yes"]))


def world(*, bias: float, sight: float) -> list[YesNo]:
    """Log-odds of yes: the bias, plus what is seen."""
    rng = random.Random(0)

    def odds(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    return [
        item(
            odds(bias + (sight if label == "yes" else -sight) + rng.gauss(0, 0.5)),
            odds(bias),
            label,
        )
        for label in ("yes", "no") * 200
    ]


def test_a_planted_bias_is_found():
    metrics = calibration_metrics(world(bias=3.0, sight=2.0))
    assert metrics["before_yes_ratio"] > 0.95 and metrics["before_accuracy"] < 0.6
    assert metrics["after_accuracy"] > 0.95 and metrics["after_yes_ratio"] == pytest.approx(
        0.5, abs=0.05
    )
    assert metrics["prior_yes"] > 0.9
    assert verdict(metrics).startswith("mostly a bias")


def test_a_planted_blindness_is_not_called_a_bias():
    metrics = calibration_metrics(world(bias=0.0, sight=0.1))
    assert metrics["perception"] > metrics["bias"]
    assert verdict(metrics).startswith("no bias that calibration mends")


def test_no_errors_need_no_explanation():
    assert "no errors" in verdict(calibration_metrics([item(0.9, 0.5), item(0.1, 0.5, "no")]))
