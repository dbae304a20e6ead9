"""The page says what the tests saw, of faults that the catalogue has."""

from __future__ import annotations

import json
import re

from tests.faults.catalogue import ALL
from tests.faults.table import DOCS, RESULTS, page


def test_the_page_is_what_the_results_make():
    text = (DOCS / "reliability.md").read_text()
    assert text == page(text, json.loads(RESULTS.read_text()))


def test_no_rollout_was_lost_or_doubled():
    results = json.loads(RESULTS.read_text())
    assert results.keys() <= {fault.id for fault in ALL}
    assert all(seen["lost"] == seen["doubled"] == 0 for seen in results.values())


def test_faults_are_many_and_distinct():
    ids = [fault.id for fault in ALL]
    assert len(set(ids)) == len(ids) >= 40
    for fault in ALL:
        assert (fault.ends == "stopped") == bool(fault.message), fault.id
        re.compile(fault.message)
