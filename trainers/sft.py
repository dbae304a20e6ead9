"""Plain SFT on the chosen responses: 1 copy, the control without which nSFT's claim means nothing.

    L = NLL(chosen), a mean over the chosen tokens of the optimiser step

Online this is rejection sampling: the same pairs as DPO and nSFT, the rejected side ignored.
`Conversations` is the same loss on given conversations: it trains the built-in base model, and any
model on a data set's own answers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from trainers.batch import Batch, Group, Row
from trainers.config import SFTConfig
from trainers.data.records import Sample, ScoredRollout
from trainers.losses import Metrics, sft_loss
from trainers.method import Method, Optimisation, Outputs, Selection
from trainers.pairs import mine_pairs
from trainers.roles import Copy, Role


class SFT(Method):
    """SFT on chosen responses; see the module's head."""

    name = "sft"
    copies = (Copy("policy", trained=True),)

    def __init__(self, config: SFTConfig):
        self.config = config

    def select(
        self, scored: Sequence[ScoredRollout], samples: Mapping[str, Sample], rng: random.Random
    ) -> Selection:
        """The round's rows, from judged rollouts."""
        mined = mine_pairs(scored, rng=rng, **self.config.pairs.model_dump())
        groups: list[Group] = []
        for pair in mined.pairs:
            chosen = pair.chosen.rollout
            groups.append((Row.of_response(samples[pair.sample_id], chosen.token_ids, chosen.id),))
        return Selection(groups, mined.stats)

    def optimisation(self, role: Role) -> Optimisation:
        """How `role` is optimised in this round."""
        config = self.config
        return Optimisation(
            learning_rate=config.learning_rate,
            epochs=config.epochs,
            minibatch_size=config.minibatch_size,
            warmup_steps=config.warmup_steps,
        )

    def loss(
        self, role: Role, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch as a share of the optimiser step, and metrics."""
        assert outputs.logprobs_BR is not None
        ones_B = outputs.logprobs_BR.new_ones(batch.num_rows)
        return sft_loss(outputs.logprobs_BR, batch.mask_BR, ones_B, normalizer=totals["tokens"])
