"""Rejection sampling: SFT on the best response to each prompt: 1 copy (policy).

    L = NLL(arg max_y score(y)), a mean over the tokens of the optimiser step

The baseline of mllm-dpo (arXiv 2402.10884): the best of N, whatever the others are. The SFT
control differs in its rows: it takes the chosen sides of DPO's pairs, so prompts whose answers are
all alike are left out there, and have a row here. `min_score` drops prompts whose best is still
poor.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from trainers.batch import Batch, Group, Row
from trainers.config import RejectionConfig
from trainers.data.records import Sample, ScoredRollout
from trainers.finished import finished_by_prompt
from trainers.losses import Metrics
from trainers.method import Method, Optimisation, Outputs, Selection
from trainers.roles import Copy, Role
from trainers.sft import mean_nll


class Rejection(Method):
    """Rejection sampling; see the module's head."""

    name = "rejection"
    copies = (Copy("policy", trained=True),)

    def __init__(self, config: RejectionConfig):
        self.config = config

    def most_groups(self, num_prompts: int, num_answers: int) -> int:
        """The best answer to each prompt."""
        return num_prompts

    def select(
        self, scored: Sequence[ScoredRollout], samples: Mapping[str, Sample], rng: random.Random
    ) -> Selection:
        """The best finished response to each prompt; among equal ones chance decides."""
        stats: dict[str, float] = {}
        groups: list[Group] = []
        least = self.config.min_score
        scores: list[float] = []
        prompts = finished_by_prompt(scored, stats)
        for sample_id, items in prompts.items():
            best = max(_score(item) for item in items)
            if least is not None and best < least:
                continue
            rollout = rng.choice([item for item in items if _score(item) == best]).rollout
            groups.append((Row.of_response(samples[sample_id], rollout.token_ids, rollout.id),))
            scores.append(best)
        stats["rejection/below_min_score"] = float(len(prompts) - len(groups))
        if scores:
            stats["rejection/score"] = sum(scores) / len(scores)
        reason = "no response has a score and ended by itself"
        if least is not None and prompts:
            reason = f"no response reaches method.min_score={least:g}; lower it"
        return Selection(groups, stats, why_empty=reason)

    def optimisation(self, role: Role) -> Optimisation:
        """How `role` is optimised in this round."""
        return Optimisation.of(self.config)

    def loss(
        self, role: Role, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch as a share of the optimiser step, and metrics."""
        return mean_nll(outputs, batch, totals)


def _score(item: ScoredRollout) -> float:
    assert item.score is not None
    return item.score
