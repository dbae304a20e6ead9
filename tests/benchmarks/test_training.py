"""`benchmarks.training` writes what docs/training_speed.md is made from."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

from benchmarks import sections_training, training

CELL = {
    "switch": "packing",
    "ratio": 1.5,
    "ratios": [1.25, 1.5, 1.75],
    "seconds": 0.5,
    "tokens_per_second": 1234.5,
    "peak_bytes": {"weights": 10**6, "logits": 2 * 10**6},
    "loss_gap": 5e-7,
    "budget": 64,
}


def test_the_page_reads_what_the_command_writes(tmp_path, monkeypatch):
    """Steps are real in `tests/actors`; here they are given."""
    output = tmp_path / "training.json"
    actor = SimpleNamespace(address=lambda: ("localhost", 0), connect=lambda *_: None)
    monkeypatch.setattr(training, "TrainActor", lambda num_threads: actor)
    monkeypatch.setattr(training, "compare", lambda *_, **__: [CELL])
    monkeypatch.setattr(training, "MODELS", {"small (LLaVA)": lambda folder: None})
    monkeypatch.setattr(sys, "argv", ["training", "--rows", "16", "--output", str(output)])
    training.main()
    text = "\n".join(sections_training.lines(json.loads(output.read_text())))
    assert "| small (LLaVA) | pairs | packing | 1.50 | 1.25, 1.50, 1.75 | 1,234 | 3.0 |" in text
    assert "A step is 16 rows" in text and "8 rows a forward" in text and "5e-07 at most" in text
