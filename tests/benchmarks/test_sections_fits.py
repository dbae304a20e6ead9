"""What of the plans was measured so far is what the files of the cards say."""

from __future__ import annotations

from benchmarks import sections_fits
from benchmarks.fits import METHODS, REGIMES

STEP = {"part": "step", "model": "m", "fits": True}
CARD = {
    "device": "card",
    "tiny": False,
    "cells": [
        {**STEP, "planned": 11 * 10**9, "measured": 10 * 10**9},
        {**STEP, "planned": 19 * 10**9, "measured": 20 * 10**9},
        {"part": "step", "model": "n", "fits": False, "planned": 99 * 10**9},
        {"part": "step", "model": "n", "failure": "cut after its 9 s"},
        {"part": "engine", "model": "m"},
    ],
}
SAID = (
    "Measured so far by `python -m benchmarks.gpu`: 2 training step(s) on card, plans -5.0% to "
    "+10.0% of what was measured."
)


def test_steps_on_a_card_are_held_against_their_plans():
    assert sections_fits.measured([CARD]) == SAID


def test_without_a_step_of_a_real_model_nothing_was_measured():
    without = {**CARD, "cells": CARD["cells"][2:]}
    for cards in ([], [{**CARD, "tiny": True}], [without]):
        assert sections_fits.measured(cards).startswith("Measured so far: nothing;")


def test_the_section_says_it():
    cells = [
        {
            "model": "m",
            "method": method,
            "regime": regime,
            "bytes": 10**10,
            "host_bytes": 0,
            "disk_bytes": 0,
        }
        for method in METHODS
        for regime in REGIMES
    ]
    result = {
        "kind": "predicted",
        "command": "python -m benchmarks.fits",
        "host_bytes": 256 * 10**9,
        "cards": {"24gb": 22 * 10**9},
        "cells": cells,
    }
    text = "\n".join(sections_fits.lines(result, [CARD]))
    assert SAID in text and "Predicted, by `python -m benchmarks.fits`" in text
