"""The page beside TRL says where the target is met."""

from __future__ import annotations

from benchmarks import sections_trl


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
                },
            }
        ],
    }
    text = "\n".join(sections_trl.lines(result))
    assert "| m | sft | as it comes | 300 | 200 | 1.50 (yes) | 70 | 100 | 0.70 (yes) |" in text
    assert (
        "| m | sft | TRL's chunked head off | 300 | 290 | 1.03 (no) | 70 | 80 | 0.88 (no) |" in text
    )
