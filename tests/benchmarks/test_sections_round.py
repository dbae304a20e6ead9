"""Sections on a round, from small results made by hand."""

from __future__ import annotations

from benchmarks import sections_round

ORIGIN = {
    "command": "python -m benchmarks.x",
    "kind": "measured",
    "device": "CPU, 2 cores",
    "versions": {"torch": "2"},
}
SOURCE = "Measured: `python -m benchmarks.x`; CPU, 2 cores; torch 2."


def place(phase: str, process: str, function: str, library: str, seconds: float) -> dict:
    return {
        "phase": phase,
        "process": process,
        "function": function,
        "library": library,
        "seconds": seconds,
    }


def test_a_wider_policy_and_a_sync_by_size():
    found = {
        "tax": 1.0625,
        "cpu_tax": 1.05,
        "round_seconds": 17.0,
        "raw_seconds": {"generate": 4.0, "train": 12.0, "bare_loop": 5.0},
        "rollout_throughput_ratio": 0.97,
    }
    data = {**ORIGIN, "width": 3, "rollouts_per_round": 256, "measured_rounds": 3}
    lines = sections_round.tax_wide({**data, "methods": {"dpo": found}})
    assert "| dpo | 1.06 | 1.05 | 17.0 s, 16.0 s | 0.97 |" in lines  # not the bare loop
    size = {"bytes": 4e6, "sync": 0.08, "copy": 0.02, "reload": 0.05}
    size |= {"sync_over_copy": 4.0, "sync_over_reload": 1.6}
    lines = sections_round.weight_sync({**ORIGIN, "repeats": 7, "sizes": [size]})
    assert "| 4.0 | 0.080 | 0.020 | 0.050 | 4.0 | 1.6 | 0.05 |" in lines and lines[-1] == SOURCE


def test_a_profile_leaves_out_waiting_and_sums_what_is_small():
    wait = "cluster.wait.Wait.__call__"
    places = [
        place("train", "driver", wait, "ray", 6.0),
        place("train", "policy/0", "actors.train.step", "deepspeed", 5.0),
        place("train", "policy/0", wait, "ray", 0.5),
        place("train", "driver", "cluster.driver.train_copies", "ray", 0.1),
        place("between phases", "driver", "cluster.a", "ours", 0.06),
        place("train", "driver", "cluster.wait.Wait._result", "ray", 0.05),
        place("sync", "policy/0", "actors.b", "ours", 0.03),
    ]
    found = {"phases": {"train": 8.0, "sync": 2.0}, "places": places}
    data = {**ORIGIN, "rollouts_per_round": 8, "measured_rounds": 3, "methods": {"dpo": found}}
    lines = sections_round.profile(data)
    assert "### dpo: 10.00 s a round" in lines and lines[-1] == SOURCE
    assert [line for line in lines if line.startswith("|")][2:] == [
        "| train | policy/0 | `actors.train.step` | deepspeed | 5.000 | 50.0% |",
        f"| train | policy/0 | `{wait}` | ray | 0.500 | 5.0% |",
        "| train | driver | `cluster.driver.train_copies` | ray | 0.100 | 1.0% |",
        "| 2 places under 1% |  |  |  | 0.090 | 0.9% |",
    ]


def test_overlap_shows_what_it_pays_and_what_it_changes():
    data = {
        **ORIGIN,
        "rollouts_per_round": 128,
        "slices": {"slices": 4, "seconds": {"1": [2.0], "4": [1.6]}, "ratio": 1.25},
        "off_policy": {"seconds": {"0": [3.0], "1": [4.0]}, "ratio": 0.75},
        "signals": {"copies": 3, "rows": 120, "ratio": 1.5, "largest_gap": 0.0},
        "judged_alike": {
            "answers": 128,
            "equal_critiques": 127,
            "unequal_failures": 0,
            "largest_score_gap": 2e-6,
        },
    }
    lines = sections_round.overlap(data)
    assert lines[0] == "## Overlap" and lines[-1] == SOURCE
    assert "| `overlap.judge_slices: 4` | 1.25 | answering and judging a round |" in lines
    assert "| `overlap.off_policy_steps: 1` | 0.75 | a round of PPO |" in lines
    row = "| copies on GPUs of their own (always) | 1.50 | what 3 copies say of PPO's 120 rows |"
    assert row in lines
    assert any(
        "Of 128 answers" in line and "127 got" in line and "2.0e-06" in line for line in lines
    )


def test_growth_marks_what_is_more_than_linear_by_both_clocks():
    def part(growth: float, cpu: float) -> dict:
        points = [{"size": size, "seconds": size / 4, "cpu_seconds": 1.0} for size in (1, 2)]
        return {"points": points, "growth": growth, "cpu_growth": cpu}

    parts = {"generate": part(1.0, 0.9), "logprobs": part(1.4, 1.05), "train": part(1.4, 1.2)}
    curve = {"sizes": [1, 2], "parts": parts}
    lines = sections_round.growth({**ORIGIN, "curves": {"response_length": curve}})
    assert "| response length | 1 | 2 | slope |" in lines and lines[-1] == SOURCE
    assert "| generate | 0.25 | 0.50 | 1.00 (0.90) |" in lines
    assert "| logprobs | 0.25 | 0.50 | 1.40 (1.05) |" in lines  # seconds alone: others were busy
    assert "| train | 0.25 | 0.50 | **1.40 (1.20)** |" in lines
