"""Relative preference optimisation: 2 copies (policy, reference); pairs contrasted across prompts.

From Yin et al. (arXiv 2402.10958). Where DPO compares a chosen response with the rejected one to
the same prompt, RPO compares it with every rejected response of a set of pairs,

    L = mean_ij -log sigmoid(beta * w_ij * (log pi/ref(y_c,i) - log pi/ref(y_r,j)))
    w_ij = softmax_j(-(1 - cos(e_i, e_j)) / similarity_temperature)

where e is what the prompt is about: contrasts count more between similar prompts. Not to be taken
for the "RPO" of other libraries, which is DPO with an NLL term.

How it departs from the paper:

1. The set is not whatever shares a device's batch: it is `contrast_size` pairs, drawn at random
   once a round, and travels as one group. So a set is never split, and micro-batches and ranks do
   not change the loss.
2. e counts the words of the prompt and its images (one more "word" each, its content hash), where
   the paper has a sentence encoder's vector of the text: no further model, and two prompts about
   different images are never the same.

With sets of one pair it is DPO.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainers.batch import Batch, Group
from trainers.config import RPOConfig
from trainers.data.records import Sample, ScoredRollout
from trainers.dpo import pair_group
from trainers.losses import Metrics
from trainers.method import Method, Optimisation, Outputs, Selection, Signal
from trainers.pairs import mine_pairs
from trainers.preference_losses import rpo_loss
from trainers.roles import Copy, Role


class RPO(Method):
    """RPO; see the module's head."""

    name = "rpo"
    copies = (Copy("policy", trained=True), Copy("reference", trained=False))
    signals = (Signal("ref_logprobs", "reference"),)
    refreshed = ("reference",)

    def __init__(self, config: RPOConfig):
        self.config = config
        self.rows_per_group = 2 * config.contrast_size

    def most_groups(self, num_prompts: int, num_answers: int) -> int:
        """Sets that a round can have at most."""
        size: int = self.config.contrast_size
        return math.ceil(super().most_groups(num_prompts, num_answers) / size)

    def select(
        self, scored: Sequence[ScoredRollout], samples: Mapping[str, Sample], rng: random.Random
    ) -> Selection:
        """Sets of pairs. A row carries its pair's place in the set, and its contrasts' weights."""
        config = self.config
        mined = mine_pairs(scored, rng=rng, **config.pairs.model_dump())
        pairs = list(mined.pairs)
        rng.shuffle(pairs)
        groups: list[Group] = []
        for start in range(0, len(pairs), config.contrast_size):
            members = pairs[start : start + config.contrast_size]
            prompts = [samples[pair.sample_id] for pair in members]
            rows = []
            for place, (pair, sample) in enumerate(zip(members, prompts, strict=True)):
                weights = contrast_weights(sample, prompts, config.similarity_temperature)
                weights += [0.0] * (config.contrast_size - len(weights))
                for row in pair_group(pair, sample):
                    row.scalars["place"] = float(place)
                    row.scalars |= {_weight(j): value for j, value in enumerate(weights)}
                    rows.append(row)
            groups.append(tuple(rows))
        return Selection(groups, mined.stats, mined.why_none)

    def optimisation(self, role: Role) -> Optimisation:
        """How `role` is optimised in this round."""
        return Optimisation.of(self.config)

    def totals(self, batch: Batch) -> dict[str, float]:
        """Counts that the loss divides by."""
        return {"contrasts": float((self._weights(batch) > 0).sum())}

    def loss(
        self, role: Role, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch as a share of the optimiser step, and metrics."""
        assert outputs.logprobs_BR is not None
        logprobs_B = (outputs.logprobs_BR * batch.mask_BR).sum(1)
        ref_B = batch.tokens["ref_logprobs"].sum(1)
        return rpo_loss(
            logprobs_B[0::2],
            logprobs_B[1::2],
            ref_B[0::2],
            ref_B[1::2],
            self._weights(batch),
            beta=self.config.beta,
            normalizer=totals["contrasts"],
        )

    def _weights(self, batch: Batch) -> Tensor:
        """w_ij of all pairs of a micro-batch, (P, P): one block for each of its sets."""
        names = [_weight(j) for j in range(self.config.contrast_size)]
        weights_PK = torch.stack([batch.scalars[name][0::2] for name in names], dim=1)
        index_P = torch.arange(len(weights_PK), device=weights_PK.device)
        first_P = index_P - batch.scalars["place"][0::2].long()
        pair_N, member_N = (weights_PK > 0).nonzero(as_tuple=True)
        weights_PP = weights_PK.new_zeros(len(weights_PK), len(weights_PK))
        weights_PP[pair_N, first_P[pair_N] + member_N] = weights_PK[pair_N, member_N]
        return weights_PP


def contrast_weights(sample: Sample, others: Sequence[Sample], temperature: float) -> list[float]:
    """softmax_j(-(1 - cos(sample, other_j)) / temperature), with the sum 1."""
    logits = [(similarity(sample, other) - 1.0) / temperature for other in others]
    top = max(logits)
    exps = [math.exp(logit - top) for logit in logits]
    # Above 0 even where exp has rounded to 0: a weight of 0 says that there is no such pair.
    return [max(value / sum(exps), 1e-12) for value in exps]


def similarity(first: Sample, second: Sample) -> float:
    """Cosine of two prompts' counts of words and images, in 0..1; 1 for the same prompt."""
    a, b = _words(first), _words(second)
    dot = sum(count * b[word] for word, count in a.items())
    norm = math.sqrt(sum(c * c for c in a.values()) * sum(c * c for c in b.values()))
    return dot / norm if norm else 1.0


def _words(sample: Sample) -> Counter[str]:
    words = Counter(word for turn in sample.prompt for word in turn.text.lower().split())
    return words + Counter(f"image:{reference}" for reference in sample.images)


def _weight(member: int) -> str:
    return f"contrast_{member}"
