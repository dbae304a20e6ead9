"""Iterative DPO: 2 copies (policy, reference).

Each round: pairs are mined from the policy's own judged rollouts (margin, cap per prompt, length
balance), the reference gives its log-probabilities once (before training, so that it could leave
the device), the policy is trained, and the trained policy becomes the next round's reference
(RLAIF-V, arXiv 2405.17220). Log-probabilities are summed over response tokens, not averaged.

Options: IPO's loss (arXiv 2310.12036); log-probabilities per token instead of summed (Tulu 3,
arXiv 2411.15124); MM-DPO's dynamic beta (arXiv 2502.10391, the paper's formula) and
gamma * NLL(chosen).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from trainers.batch import Batch, Group, Row
from trainers.config import DPOConfig
from trainers.data.records import PreferencePair, Sample, ScoredRollout
from trainers.losses import Metrics, dpo_loss, dynamic_beta, sft_loss
from trainers.method import Method, Optimisation, Outputs, Selection, Signal
from trainers.pairs import mine_pairs
from trainers.roles import Copy, Role


class DPO(Method):
    """Iterative DPO; see the module's head."""

    name = "dpo"
    copies = (Copy("policy", trained=True), Copy("reference", trained=False))
    signals = (Signal("ref_logprobs", "reference"),)
    refreshed = ("reference",)
    rows_per_group = 2

    def __init__(self, config: DPOConfig):
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
        logprobs_B = (outputs.logprobs_BR * batch.mask_BR).sum(1)
        ref_B = batch.tokens["ref_logprobs"].sum(1)
        if config.length_normalised:
            lengths_B = batch.mask_BR.sum(1).clamp(min=1)
            logprobs_B, ref_B = logprobs_B / lengths_B, ref_B / lengths_B
        beta: float | Tensor = config.beta
        if config.dynamic_beta:
            margin_B = batch.scalars["margin"][0::2]
            beta = dynamic_beta(
                margin_B, beta=config.beta, w=config.dynamic_beta_w, k=config.dynamic_beta_k
            )
        # A group is (chosen, rejected), and groups are never split, so even rows are chosen.
        loss, metrics = dpo_loss(
            logprobs_B[0::2],
            logprobs_B[1::2],
            ref_B[0::2],
            ref_B[1::2],
            beta=beta,
            kind=config.loss,
            label_smoothing=config.label_smoothing,
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


def pair_group(pair: PreferencePair, sample: Sample) -> Group:
    """(chosen, rejected) as rows, each with the judge's `margin`."""
    chosen, rejected = pair.chosen.rollout, pair.rejected.rollout
    return (
        Row.of_response(sample, chosen.token_ids, chosen.id, margin=pair.margin),
        Row.of_response(sample, rejected.token_ids, rejected.id, margin=pair.margin),
    )
