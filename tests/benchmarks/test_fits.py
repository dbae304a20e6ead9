"""`benchmarks.fits` says what the planner says now."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import fits
from benchmarks.fits import METHODS, REGIMES, main, plan_model
from benchmarks.result import HERE

SAMPLE = "smolvlm2-500m"


@pytest.mark.slow
def test_the_committed_file_is_what_the_planner_says():
    """A sample: the smallest model, every method in every regime."""
    committed = json.loads((HERE / "fits.json").read_text())["cells"]
    sample = [cell for cell in committed if cell["model"] == SAMPLE]
    assert len(sample) == len(METHODS) * len(REGIMES)
    assert sample == plan_model(SAMPLE), "run python -m benchmarks.fits"


def test_what_the_file_had_is_planned_anew(tmp_path, monkeypatch):
    path = tmp_path / "fits.json"
    path.write_text(json.dumps({"cells": [{"model": SAMPLE, "bytes": 1}]}))
    monkeypatch.setattr(fits, "plan_model", lambda name: [{"model": name, "bytes": 2}])
    monkeypatch.setattr(sys, "argv", ["fits", "--models", SAMPLE, "--output", str(path)])
    main()
    assert json.loads(path.read_text())["cells"] == [{"model": SAMPLE, "bytes": 2}]
