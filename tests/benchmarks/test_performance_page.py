"""docs/performance.md and the measured part of docs/training_speed.md are what the files say."""

from __future__ import annotations

import json

import pytest

from benchmarks.performance_page import (
    HERE,
    NOTES,
    README,
    SECTIONS,
    TARGET,
    TRAINING,
    page,
    readme,
    training_page,
)
from benchmarks.sections_training import BEGIN, END, between


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


@pytest.mark.parametrize("name", ["overlap_cpu.json", "growth_cpu.json", "profile_cpu.json"])
def test_a_section_without_its_file_is_left_out(name, tmp_path):
    assert name in SECTIONS
    for path in HERE.glob("*.json"):
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    text = page(tmp_path, NOTES.read_text())
    assert "## What orchestration costs" in text and name not in text


def test_the_training_page_is_what_the_results_say():
    text = TRAINING.read_text()
    assert text == training_page(HERE, text), "run python -m benchmarks.performance_page"
    cells = json.loads((HERE / "training_cpu.json").read_text())["cells"]
    assert text.count("| all three |") == sum(cell["switch"] == "all three" for cell in cells) > 0


def test_the_readme_is_what_the_results_say():
    text = README.read_text()
    assert text == readme(HERE, text), "run python -m benchmarks.performance_page"


def test_only_what_stands_between_the_marks_is_made():
    made = between(f"one\n{BEGIN}\nold\n{END}\ntwo\n", ["new"])
    assert made == f"one\n{BEGIN}\n\nnew\n{END}\ntwo\n"
    assert between(made, ["new"]) == made
    with pytest.raises(ValueError, match="once each"):
        between(f"{BEGIN} {END} {END}", ["new"])


def test_every_committed_file_says_what_it_is():
    """Those of a command under benchmarks; `quartet bench memory` writes a form of its own."""
    for path in {*HERE.glob("*.json")} - {HERE / "memory_cpu.json"}:
        said = json.loads(path.read_text())
        assert said["kind"] in ("measured", "traced", "predicted"), path.name
        assert said["command"].startswith("python -m benchmarks."), path.name
