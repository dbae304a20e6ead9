"""Pages are made of what was measured or planned, and say which."""

from __future__ import annotations

from benchmarks import sections_fits, sections_gpu
from benchmarks.fits import REGIMES, fitting


def cells(**needed: tuple[int, int]) -> list[dict]:
    """`full=(bytes, host)`; other regimes need more than there is."""
    return [
        {
            "model": "m",
            "method": method,
            "regime": regime,
            "bytes": needed.get(regime.split(",")[0].split(" ")[0], (10**15, 0))[0],
            "host_bytes": needed.get(regime.split(",")[0].split(" ")[0], (0, 0))[1],
            "disk_bytes": 3 * 10**9 if regime == "full" else 0,
            "binding_phase": "train",
        }
        for method in ("ppo", "dpo", "nsft")
        for regime in REGIMES
    ]


def test_the_first_regime_that_card_and_host_have_room_for():
    own = [cell for cell in cells(full=(50, 0), LoRA=(20, 30)) if cell["method"] == "ppo"]
    assert fitting(own, 50, 100)["regime"] == "full"
    assert fitting(own, 49, 100)["regime"] == "LoRA 64"
    assert fitting(own, 49, 29) is None  # the host is too small
    assert fitting(own, 19, 100) is None


def test_what_fits_is_a_table_by_card():
    result = {
        "kind": "predicted",
        "command": "python -m benchmarks.fits",
        "host_bytes": 256 * 10**9,
        "cards": {"24gb": 22 * 10**9, "80gb": 79 * 10**9},
        "cells": cells(full=(50 * 10**9, 0), LoRA=(20 * 10**9, 9 * 10**9)),
    }
    text = "\n".join(sections_fits.lines(result))
    assert "| m | ppo | LoRA 64 (20.0 + 9 host) | full (50.0 + 3 disk) |" in text
    assert text.startswith("## Which model") and "Predicted" in text


GPU = {
    "kind": "measured",
    "command": "python -m benchmarks.gpu",
    "device": "card",
    "versions": {"torch": "2"},
    "tiny": False,
    "minutes": {"asked": 8, "taken": 7.5},
    "cells": [
        {
            "part": "engine",
            "model": "m",
            "dtype": "float32",
            "parity": {"mean": 1e-6, "max": 2e-5},
            "generate": {"tokens_per_second": 1234.5},
            "logprobs": {"tokens_per_second": 9999.0, "mfu": 0.25},
            "sync": {"gb_per_second": 1.5, "transport": "buckets"},
        },
        {"part": "engine", "model": "n", "dtype": "bfloat16", "failure": "cut after its 9 s"},
        {
            "part": "engine",
            "model": "k",
            "dtype": "float32",
            "logprobs": {"tokens_per_second": 77.0, "mfu": None},
            "failure": "generate: ValueError: no room",
        },
        {
            "part": "step",
            "model": "k",
            "method": "dpo",
            "regime": "offload",
            "failure": "OutOfMemoryError: 3 GiB",
        },
        {
            "part": "step",
            "model": "m",
            "method": "ppo",
            "regime": "full",
            "fits": True,
            "planned": 11 * 10**9,
            "planned_host": 0,
            "measured": 10 * 10**9,
            "measured_host": 0,
            "processes": {
                "policy": {"claimed": 99, "unattributed": 1, "runtime": None},
                "critic": {"claimed": 102, "unattributed": -2, "runtime": 5},
            },
            "tokens_per_second": 500.0,
            "mfu": None,
        },
        {
            "part": "step",
            "model": "n",
            "method": "ppo",
            "regime": "full",
            "fits": False,
            "planned": 99 * 10**9,
            "planned_host": 88 * 10**9,
        },
        {
            "part": "round",
            "model": "n",
            "method": "ppo",
            "fits": False,
            "lacks": "host",
            "planned": 99 * 10**9,
            "planned_host": 88 * 10**9,
            "binding_phase": "train",
        },
        {
            "part": "round",
            "model": "m",
            "method": "dpo",
            "fits": True,
            "planned": 5 * 10**9,
            "planned_host": 2 * 10**9,
            "binding_phase": "train",
            "measured": 4 * 10**9,
            "measured_host": 10**9,
            "seconds_by_phase": {"train": 2.0, "load": 9.0},
            "ledger": {"train": {"claimed": 3 * 10**9, "runtime": 10**9}},
            "unknown": ["policy/0"],
        },
    ],
}


def test_what_a_card_did_and_what_was_cut():
    text = "\n".join(sections_gpu.lines(GPU))
    assert "| m | float32 | 1.0e-06 | 2.0e-05 | 1,234 | 9,999 | 25.0% | 1.50 | buckets |" in text
    # Where vLLM failed the trainer's side is there, and the failure too.
    assert "| k | float32 | - | - | - | 77 | - | - | - |" in text
    assert "| engine | k | float32 | generate: ValueError: no room |" in text
    assert "| m | full | ppo | 11.00 | 10.00 | +10.0% | 99.0%, 102.0% | 500 | - |" in text
    assert "| n | full | ppo | 99.00 + 88.00 host | does not fit | - | - | - | - |" in text
    lacks = "does not fit: lacks host memory | 99.00 + 88.00 host (train)"
    assert f"| n | ppo | {lacks} | - | - | - |" in text
    assert (
        "| m | dpo | train 2.0 | 5.00 + 2.00 host (train) | 4.00 + 1.00 host (train) | 100.0% "
        "| claimed 75%, runtime 25%, runtime of policy/0 unknown |"
    ) in text
    assert "| engine | n | bfloat16 | cut after its 9 s |" in text
    assert "| step | k | dpo offload | OutOfMemoryError: 3 GiB |" in text
    assert "in miniature" not in text
