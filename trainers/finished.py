"""The responses of a round that can be imitated, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence

from trainers.data.records import ScoredRollout


def finished_by_prompt(
    scored: Sequence[ScoredRollout], stats: dict[str, float]
) -> dict[str, list[ScoredRollout]]:
    """Responses with a score that ended by themselves, by sample, in order of appearance.

    One that the length limit cut has no EOS: imitating it would teach not to stop. What is left out
    is counted in `stats` (`responses/failures`, `responses/truncated`, `responses/used`).
    """
    counts = {"failures": 0, "truncated": 0, "used": 0}
    prompts: dict[str, list[ScoredRollout]] = {}
    for item in scored:
        if item.score is None:
            counts["failures"] += 1
        elif item.rollout.finish_reason != "stop":
            counts["truncated"] += 1
        else:
            counts["used"] += 1
            prompts.setdefault(item.rollout.sample_id, []).append(item)
    stats.update({f"responses/{name}": float(value) for name, value in counts.items()})
    return prompts
