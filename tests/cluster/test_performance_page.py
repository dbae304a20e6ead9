"""docs/performance.md: its sections from results by hand, and the slope of a curve."""

from __future__ import annotations

import json

import pytest

from benchmarks.figures import growth, summary
from benchmarks.performance_page import HERE, NOTES, TARGET, page


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
    found = summary([one_round(10.0), one_round(8.0), one_round(12.0)])
    assert found["tax"] == 10.0 / 8.0 and found["tax_range"] == [1.0, 1.5]
    assert found["cpu_tax"] == 18.0 / 16.0  # copying is no raw call of the round
    assert found["rollout_throughput_ratio"] == pytest.approx(4 / 5)
    assert found["sync"]["over_copy_between_processes"] == 2.0
    assert found["outside_phases_seconds"] == pytest.approx(10 - 9.1)


def test_every_file_has_its_section_and_an_unknown_one_is_shown(tmp_path):
    (tmp_path / "new.json").write_text(json.dumps({"a": {"ratio": 1.23456}, "b": [1, 2]}))
    (tmp_path / "memory_cpu.json").write_text("{}")
    text = page(tmp_path, "## Notes\n")
    assert "| `a.ratio` | 1.235 |" in text and "| `b` | [1, 2] |" in text
    assert "memory_cpu" not in text and text.endswith("## Notes\n")


def test_the_page_is_what_the_results_say():
    assert TARGET.read_text() == page(HERE, NOTES.read_text()), (
        "run python -m benchmarks.performance_page"
    )
