"""From what was timed to figures, by hand-worked numbers."""

from __future__ import annotations

import pytest

from benchmarks.figures import growth, phase_seconds, summary


@pytest.mark.parametrize(("power", "slope"), [(1, 1.0), (2, 2.0), (0, 0.0)])
def test_the_slope_is_the_power(power, slope):
    points = [{"size": size, "seconds": 3.0 * size**power} for size in (1, 2, 8)]
    assert growth(points, "seconds") == pytest.approx(slope)


def one_round(seconds: float) -> dict:
    """Raw calls of 8 s: generate 4 (100 tokens), judge 1, train 2, sync 1."""
    raw = {"judge": 1.0, "train": 2.0, "sync": 1.0, "copy_in_memory": 0.5}
    return {
        "seconds": seconds,
        "cpu_seconds": 18.0,
        "tokens": 100,
        "phases": {"generate": 5.0, "train": 2.5, "sync": 1.5, "record": 0.1},
        "raw": {
            "generate": {"seconds": 4.0, "cpu_seconds": 8.0, "tokens": 100.0},
            "bare_loop": {"seconds": 4.0, "cpu_seconds": 8.0, "tokens": 100.0},
            **{k: {"seconds": v, "cpu_seconds": 2 * v, "bytes": 8.0} for k, v in raw.items()},
            "copy_between_processes": {"seconds": 0.75, "bytes": 8.0},
        },
    }


def test_the_tax_is_the_round_over_its_raw_calls():
    found = summary([one_round(10.0), one_round(9.5), one_round(12.0)])
    assert found["tax"] == 10.0 / 8.0 and found["tax_range"] == [9.5 / 8.0, 1.5]
    assert found["cpu_tax"] == 18.0 / 16.0  # copying is no raw call of the round
    assert found["rollout_throughput_ratio"] == pytest.approx(4 / 5)
    assert found["sync"]["over_copy_between_processes"] == 2.0
    assert found["outside_phases_seconds"] == pytest.approx(10 - 9.1)


def test_what_was_done_aside_is_not_the_phases():
    spans = [("train", 0.0, 4.0), ("sync", 4.0, 5.0), ("train", 6.0, 7.5)]
    assert phase_seconds(spans, {"train": 3.0, "logprobs": 1.0}) == {"train": 2.5, "sync": 1.0}


@pytest.mark.parametrize(
    ("phases", "named"),
    [
        ({"generate": 5.0, "train": -0.5, "sync": 1.5}, "train took -0.500 s"),
        ({"generate": 9.0, "sync": 4.0}, "between phases took -3.000 s"),
    ],
)
def test_less_than_nothing_is_refused(phases, named):
    wrong = {**one_round(10.0), "phases": phases}
    with pytest.raises(ValueError, match=named):
        summary([one_round(10.0), wrong])
