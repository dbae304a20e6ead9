"""POVID: one preferred answer against two made ones: 2 copies (policy, reference).

From Zhou et al., "Aligning Modalities in Vision Large Language Models via Preference Fine-tuning"
(arXiv 2402.11411). For a right answer y_c, a wrong version of it y_t (errors put into the text) and
y_n, what the policy would rather say at each place of y_c if it saw a distorted image:

    L = -log sigmoid( beta * r(y_c | x) - [ text_coef * r(y_t | x) + noise_coef * r(y_n | x') ] )
    r(y | x) = log policy(y | x) - log reference(y | x), summed over tokens

x' is x with diffusion noise on its image; y_n is teacher-forced on the prefix of y_c, its tokens
are the policy's likeliest under x', taken once a round before training. The released code has
instead half a DPO loss for each of the two, and reads y_n's log-probabilities under the clean
image.
Stage 1 of the paper is noise_coef = 0; its alpha, b1 and b2 are not published.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trainers.batch import Batch, Group, Row
from trainers.config import POVIDConfig
from trainers.data.noise import ImageNoise
from trainers.data.records import PreferencePair, Sample, ScoredRollout
from trainers.losses import Metrics
from trainers.method import Method, Optimisation, Outputs, Selection, Signal
from trainers.pairs import mine_pairs
from trainers.roles import Copy, Role


class POVID(Method):
    """POVID; see the module's head."""

    name = "povid"
    copies = (Copy("policy", trained=True), Copy("reference", trained=False))
    signals = (Signal("ref_logprobs", "reference"),)
    refreshed = ("reference",)

    def __init__(self, config: POVIDConfig):
        self.config = config
        self.rows_per_group = 1 + bool(config.text_coef) + bool(config.noise_coef)

    def select(
        self, scored: Sequence[ScoredRollout], samples: Mapping[str, Sample], rng: random.Random
    ) -> Selection:
        """The round's rows, from judged rollouts."""
        mined = mine_pairs(scored, rng=rng, **self.config.pairs.model_dump())
        groups = [self._group(pair, samples[pair.sample_id]) for pair in mined.pairs]
        return Selection(groups, mined.stats, mined.why_none)

    def _group(self, pair: PreferencePair, sample: Sample) -> Group:
        """Chosen, then the made negatives whose coefficient is not 0."""
        chosen, rejected = pair.chosen.rollout, pair.rejected.rollout
        rows = [Row.of_response(sample, chosen.token_ids, chosen.id)]
        if self.config.text_coef:
            rows.append(Row.of_response(sample, rejected.token_ids, rejected.id))
        if self.config.noise_coef:
            noised = Row.of_response(sample, chosen.token_ids, f"{chosen.id}/noised")
            noised.noise = ImageNoise(self.config.noise_step, sample.id)
            noised.greedy = True
            rows.append(noised)
        return tuple(rows)

    def optimisation(self, role: Role) -> Optimisation:
        """How `role` is optimised in this round."""
        config = self.config
        return Optimisation(
            learning_rate=config.learning_rate,
            epochs=config.epochs,
            minibatch_size=config.minibatch_size,
            warmup_steps=config.warmup_steps,
        )

    def totals(self, batch: Batch) -> dict[str, float]:
        """Counts that the loss divides by."""
        return {"groups": batch.num_rows / self.rows_per_group}

    def loss(
        self, role: Role, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch as a share of the optimiser step, and metrics."""
        assert outputs.logprobs_BR is not None
        config, step = self.config, self.rows_per_group
        logprobs_B = (outputs.logprobs_BR * batch.mask_BR).sum(1)
        ratio_B = logprobs_B - batch.tokens["ref_logprobs"].sum(1)
        # Groups are never split, so every step-th row is a chosen one.
        zeros = torch.zeros_like(ratio_B[0::step])
        text_at = 1 if config.text_coef else None
        noise_at = step - 1 if config.noise_coef else None
        return povid_loss(
            ratio_B[0::step],
            zeros if text_at is None else ratio_B[text_at::step],
            zeros if noise_at is None else ratio_B[noise_at::step],
            beta=config.beta,
            text_coef=config.text_coef,
            noise_coef=config.noise_coef,
            normalizer=totals["groups"],
        )


def povid_loss(
    chosen_B: Tensor,
    text_B: Tensor,
    noise_B: Tensor,
    *,
    beta: float,
    text_coef: float,
    noise_coef: float,
    normalizer: float,
) -> tuple[Tensor, Metrics]:
    """The paper's loss on log-ratios policy / reference, summed over groups, over `normalizer`.

        L = sum -log sigmoid(beta * chosen - (text_coef * text + noise_coef * noise)) / n

    Limiting cases: policy = reference gives ln 2; with noise_coef 0 and text_coef = beta it is DPO.
    Source: POVID (arXiv 2402.11411), the equation of the paper.

    Args:
        chosen_B: of the preferred answer, clean image.
        text_B: of its wrong version, clean image.
        noise_B: of the policy's own tokens along the preferred answer, distorted image.

    Metrics, all per group: `loss/povid`, `rewards/chosen`, `rewards/text`, `rewards/noise`,
    `rewards/margins`, `rewards/accuracies`.
    """
    rewards = (beta * chosen_B, text_coef * text_B, noise_coef * noise_B)
    margin_B = rewards[0] - rewards[1] - rewards[2]
    total = -logsigmoid(margin_B).sum()
    names = ("rewards/chosen", "rewards/text", "rewards/noise")
    sums = {
        "loss/povid": total,
        **{name: value.sum() for name, value in zip(names, rewards, strict=True)},
        "rewards/margins": margin_B.sum(),
        "rewards/accuracies": (margin_B > 0).sum(),
    }
    count = float(len(margin_B))
    return total / normalizer, {
        name: (float(value.detach()), count) for name, value in sums.items()
    }
