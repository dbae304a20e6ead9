"""The page beside TRL says where the target is met, and what a step of ours is made of."""

from __future__ import annotations

from benchmarks import sections_trl
from benchmarks.trl_side_by_side import OURS, THEIRS


def test_beside_trl_says_where_the_target_is_met():
    def cell(task: str, variant: str, tokens: float, peak: int) -> dict:
        return {"task": task, "variant": variant, "tokens_per_second": tokens, "peak": peak}

    result = {
        "kind": "measured",
        "command": "python -m benchmarks.trl_side_by_side",
        "device": "cpu",
        "clock": "core-seconds",
        "load": {"pairs": 8, "sequence": 48},
        "models": [
            {
                "model": "m",
                "versions": {"ours": {"torch": "2"}, "trl": {"trl": "1.16.0"}},
                "cells": {
                    "ours": [cell("sft", "equal", 300.0, 70 * 10**6)],
                    "trl": [
                        cell("sft", "equal", 200.0, 100 * 10**6),
                        cell("sft", "full_logits", 290.0, 80 * 10**6),
                    ],
                    "trl_kept": [
                        cell("sft", "equal", 250.0, 100 * 10**6),
                        cell("sft", "full_logits", 300.0, 80 * 10**6),
                    ],
                },
            }
        ],
    }
    text = "\n".join(sections_trl.lines(result))
    assert (
        "| m | sft | as it comes | 300 | 200 | 1.50 (yes) | 1.20 | 70 | 100 | 0.70 (yes) |" in text
    )
    off = (
        "| m | sft | TRL's chunked head off | 300 | 290 | 1.03 (no) | 1.00 | 70 | 80 | 0.88 (no) |"
    )
    assert off in text


def test_every_variant_has_its_name_and_a_side_of_ours():
    assert {variant for _, variant in THEIRS} == set(sections_trl.NAMES)
    assert {task for task, _ in THEIRS} == {task for task, variant in OURS if variant == "equal"}


def test_what_the_engine_costs_is_shown_as_a_share_of_the_step():
    spent = {"whole": 0.1, "data": 0.04, "engine": 0.07, "torch": 0.06}
    cell = {
        "model": "m",
        "task": "sft",
        "core_seconds": spent,
        "losses": {"engine": [4.0, 2.5], "torch": [4.0, 2.5000001]},
    }
    data = {
        "kind": "measured",
        "command": "python -m benchmarks.step_parts",
        "device": "CPU",
        "versions": {"torch": "2"},
        "clock": "core_seconds",
        "load": {"turns": 15},
        "cells": [cell],
    }
    text = "\n".join(sections_trl.parts(data))
    assert "| m | sft | 100 | 40 | 70 | 60 | +10 (+10%) |" in text
    assert "differ by 1e-07" in text and "medians of 15 steps" in text
