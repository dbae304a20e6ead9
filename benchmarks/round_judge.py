"""A judge that needs no model, for rounds of models with random weights: chance, and two findings.

`quartet train --judge benchmarks.round_judge:judge`, from the repository's folder.
"""

from __future__ import annotations

import random
from typing import Any


def judge(*, response: str, **_: Any) -> dict[str, Any]:
    """A score drawn from a standard normal, fixed by the text; its first word is called bad and a
    word that it has not missing, so that nSFT has a correction to write.
    """
    words = response.split()
    bad = [{"claim": words[0], "verdict": "bad", "kind": "existence"}] if words else []
    return {
        "score": random.Random(response).gauss(0.0, 1.0),
        "critique": "by chance",
        "findings": [*bad, {"claim": "nothing", "verdict": "missing", "kind": "existence"}],
    }
