"""SELM: DPO that looks for answers it does not give yet: 2 copies (policy, reference).

From Zhang et al., "Self-Exploring Language Models" (arXiv 2405.19332):

    L = -log sigmoid(beta * h) + alpha * beta * mean_y [log pi(y) - log ref(y)],  y ~ ref

The second term takes probability from what the previous policy would say, whatever the judge thinks
of it, and so leaves it to answers not seen yet: optimism. y is an answer of the round to the same
prompt, drawn at random: the reference is the policy that sampled the round, so it is a sample of
the expectation in the paper. (The released code takes a greedy answer instead, which it generates
besides.) One more row a pair than DPO; alpha = 0 is DPO. The paper has beta 0.01, alpha 0.001.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from trainers.batch import Batch, Group, Row
from trainers.config import SELMConfig
from trainers.data.records import Sample, ScoredRollout
from trainers.dpo import pair_group
from trainers.losses import Metrics, dpo_loss
from trainers.method import Method, Optimisation, Outputs, Selection, Signal
from trainers.pairs import mine_pairs
from trainers.roles import Copy, Role


class SELM(Method):
    """SELM; see the module's head."""

    name = "selm"
    copies = (Copy("policy", trained=True), Copy("reference", trained=False))
    signals = (Signal("ref_logprobs", "reference"),)
    refreshed = ("reference",)
    rows_per_group = 3

    def __init__(self, config: SELMConfig):
        self.config = config

    def select(
        self, scored: Sequence[ScoredRollout], samples: Mapping[str, Sample], rng: random.Random
    ) -> Selection:
        """Groups of chosen, rejected, and an answer drawn at random from the same prompt's."""
        mined = mine_pairs(scored, rng=rng, **self.config.pairs.model_dump())
        answers: dict[str, list[ScoredRollout]] = {}
        for item in scored:
            if item.score is not None:
                answers.setdefault(item.rollout.sample_id, []).append(item)
        groups: list[Group] = []
        for pair in mined.pairs:
            sample = samples[pair.sample_id]
            usual = rng.choice(answers[pair.sample_id]).rollout
            row = Row.of_response(sample, usual.token_ids, usual.id, margin=pair.margin)
            groups.append((*pair_group(pair, sample), row))
        return Selection(groups, mined.stats, mined.why_none)

    def optimisation(self, role: Role) -> Optimisation:
        """How `role` is optimised in this round."""
        return Optimisation.of(self.config)

    def totals(self, batch: Batch) -> dict[str, float]:
        """Counts that the loss divides by."""
        return {"pairs": batch.num_rows / 3}

    def loss(
        self, role: Role, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch as a share of the optimiser step, and metrics."""
        assert outputs.logprobs_BR is not None
        config = self.config
        logprobs_B = (outputs.logprobs_BR * batch.mask_BR).sum(1)
        ref_B = batch.tokens["ref_logprobs"].sum(1)
        loss, metrics = dpo_loss(
            logprobs_B[0::3],
            logprobs_B[1::3],
            ref_B[0::3],
            ref_B[1::3],
            beta=config.beta,
            normalizer=totals["pairs"],
        )
        usual = (logprobs_B[2::3] - ref_B[2::3]).sum()
        metrics["selm/log_ratio"] = (float(usual.detach()), batch.num_rows / 3)
        return loss + config.alpha * config.beta * usual / totals["pairs"], metrics
