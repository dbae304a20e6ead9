"""Factual text for a critique model: what is known of the image stands before the request.

Fact-RLHF (arXiv 2309.14525) tells its reward model, and not the policy, what annotators wrote of
the image. The facts are those of the rubric judge (`rewards.rubric.factual_text`).
"""

from __future__ import annotations

from rewards.rubric import factual_text
from trainers.data.records import Sample

HEADING = "What is known of the image:"
NO_FACTS = "no facts: the sample's truth has neither facts nor captions"


def has_facts(sample: Sample) -> bool:
    """Whether something is known of the sample's image."""
    return factual_text(sample) is not None


def request_with_facts(request: str, sample: Sample) -> str:
    r"""The evaluator's request with the facts before it. `has_facts` has to hold.

    Example: "What is known of the image:\n- a red circle\n\ncritique the answer ."
    """
    facts = factual_text(sample)
    assert facts is not None, "ask has_facts first"
    return f"{HEADING}\n{facts}\n\n{request}"
