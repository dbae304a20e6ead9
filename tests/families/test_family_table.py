"""The page of the families is what was measured, of all of them."""

from __future__ import annotations

import json

from tests.families.table import COLUMNS, DOCS, table
from trainers.data.model_folder import FAMILIES


def test_the_page_is_generated_from_the_results():
    results = json.loads((DOCS / "models.json").read_text())
    assert (DOCS / "models.md").read_text() == table(results)
    for family in FAMILIES:
        assert set(COLUMNS) == set(results[family]), family


def test_a_cell_that_was_not_measured_says_so():
    page = table({"versions": {"torch": "2"}, "llava": {"parity": 2e-6, "nSFT": 1.234}})
    line = next(line for line in page.splitlines() if line.startswith("| LLaVA-1.5 "))
    assert "| 2.0e-06 | not measured |" in line and "| 1.23 |" in line
