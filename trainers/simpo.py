"""SimPO: preference pairs without a reference: 1 copy (policy).

    L = -log sigmoid(beta * (log pi(y_c) / |y_c| - log pi(y_r) / |y_r|) - gamma)

From Meng et al. (arXiv 2405.14734). The implicit reward is the mean log-probability per token, the
quantity that decoding maximises, so that longer answers win nothing by their length, and there is
no reference to keep in memory. Nothing holds the policy back either: the paper trains one epoch at
a small learning rate; gamma * NLL(chosen) is there as `sft_coef`. Pairs are those of DPO.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from trainers.batch import Batch
from trainers.config import SimPOConfig
from trainers.data.records import Sample, ScoredRollout
from trainers.dpo import pair_group
from trainers.losses import Metrics, sft_loss
from trainers.method import Method, Optimisation, Outputs, Selection
from trainers.pairs import mine_pairs
from trainers.preference_losses import simpo_loss
from trainers.roles import Copy, Role


class SimPO(Method):
    """SimPO; see the module's head."""

    name = "simpo"
    copies = (Copy("policy", trained=True),)
    rows_per_group = 2

    def __init__(self, config: SimPOConfig):
        self.config = config

    def select(
        self, scored: Sequence[ScoredRollout], samples: Mapping[str, Sample], rng: random.Random
    ) -> Selection:
        """The round's rows, from judged rollouts."""
        mined = mine_pairs(scored, rng=rng, **self.config.pairs.model_dump())
        groups = [pair_group(pair, samples[pair.sample_id]) for pair in mined.pairs]
        return Selection(groups, mined.stats, mined.why_none)

    def optimisation(self, role: Role) -> Optimisation:
        """How `role` is optimised in this round."""
        return Optimisation.of(self.config)

    def totals(self, batch: Batch) -> dict[str, float]:
        """Counts that the loss divides by."""
        chosen_tokens = float(batch.mask_BR[0::2].sum())
        return {"pairs": batch.num_rows / 2, "chosen_tokens": chosen_tokens}

    def loss(
        self, role: Role, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch as a share of the optimiser step, and metrics."""
        assert outputs.logprobs_BR is not None
        config = self.config
        lengths_B = batch.mask_BR.sum(1).clamp(min=1)
        mean_B = (outputs.logprobs_BR * batch.mask_BR).sum(1) / lengths_B
        # A group is (chosen, rejected), and groups are never split, so even rows are chosen.
        loss, metrics = simpo_loss(
            mean_B[0::2],
            mean_B[1::2],
            beta=config.beta,
            gamma=config.gamma,
            normalizer=totals["pairs"],
        )
        if config.sft_coef:
            mask_BR = batch.mask_BR[0::2]
            nll, _ = sft_loss(
                outputs.logprobs_BR[0::2],
                mask_BR,
                mask_BR.new_ones(len(mask_BR)).float(),
                normalizer=totals["chosen_tokens"],
            )
            loss = loss + config.sft_coef * nll
        return loss, metrics
