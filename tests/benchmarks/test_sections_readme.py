"""The README's part on speed, from small results made by hand."""

from __future__ import annotations

from benchmarks import sections_readme
from benchmarks.fits import METHODS, REGIMES

TAX = {
    "command": "python -m benchmarks.tax",
    "kind": "measured",
    "device": "CPU, 2 cores",
    "versions": {"torch": "2"},
    "rollouts_per_round": 256,
    "methods": {
        "dpo": {
            "round_seconds": 3.04,
            "raw_seconds": {"generate": 0.5, "train": 2.0, "bare_loop": 9.0},
            "tax": 1.216,
            "rollout_throughput_ratio": 0.9,
            "sync": {"seconds": 0.06},
            "rounds": [
                {"tokens": 1000, "phases": {"generate": 0.5}},
                {"tokens": 3000, "phases": {"generate": 1.0}},
                {"tokens": 9000, "phases": {"generate": 1.0}},
            ],
        }
    },
}


def test_a_round_by_hand():
    lines = sections_readme.lines(TAX, {**FITS, "cells": []})
    assert lines[0] == "A round of 256 answers with the built-in model:"
    assert "| seconds a round | 3.0 |" in lines
    # Half a second and two; the bare loop is no part of the round.
    assert "| of them raw calls of vLLM, DeepSpeed and models | 2.5 |" in lines
    assert "| tokens generated a second | 3,000 |" in lines  # of 2,000, 3,000 and 9,000


FITS = {
    "command": "python -m benchmarks.fits",
    "host_bytes": 100,
    "cards": {"24gb": 10, "80gb": 50},
}


def test_the_first_regime_that_fits_by_hand():
    # PPO needs 60 of the card, or 40 and 90 of the host; DPO 30, or 10; nSFT more than there is.
    needs = {"ppo": (60, 40), "dpo": (30, 10), "nsft": (99, 98)}
    host = {"ppo": 90, "dpo": 20, "nsft": 0}
    cells = [
        {
            "model": "m",
            "method": method,
            "regime": regime,
            "bytes": needs[method][number] if number < 2 else 1000,
            "host_bytes": host[method] if number == 1 else 0,
        }
        for method in METHODS
        for number, regime in enumerate(REGIMES)
    ]
    lines = sections_readme.lines(TAX, {**FITS, "cells": cells})
    assert "| m | - / offload / - | offload / full / - |" in lines


def test_every_regime_has_a_short_name():
    assert sections_readme.SHORT.keys() == REGIMES.keys()
