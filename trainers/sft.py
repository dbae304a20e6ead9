"""Plain SFT on the chosen responses: 1 copy, the control without which nSFT's claim means nothing.

    L = NLL(chosen), a mean over the chosen tokens of the optimiser step

With `target: mined` the same pairs as DPO and nSFT, the rejected side ignored; with `target: data`
the data's own answers (column `chosen`) to the round's prompts: plain SFT, to which the rollouts
only give the curve.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from trainers.batch import Batch, Group, Row
from trainers.config import SFTConfig
from trainers.data.errors import UserError
from trainers.data.records import Sample, ScoredRollout, Turn
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

    def most_groups(self, num_prompts: int, num_answers: int) -> int:
        """The chosen answers of all pairs, or the data's answer to each prompt."""
        if self.config.target == "data":
            return num_prompts
        return super().most_groups(num_prompts, num_answers)

    def select(
        self, scored: Sequence[ScoredRollout], samples: Mapping[str, Sample], rng: random.Random
    ) -> Selection:
        """The round's rows, from judged rollouts or from the data.

        Raises:
            UserError: `target: data`, and the data have no answers.
        """
        if self.config.target == "data":
            return _data_answers(samples)
        mined = mine_pairs(scored, rng=rng, **self.config.pairs.model_dump())
        groups: list[Group] = []
        for pair in mined.pairs:
            chosen = pair.chosen.rollout
            groups.append((Row.of_response(samples[pair.sample_id], chosen.token_ids, chosen.id),))
        return Selection(groups, mined.stats, mined.why_none)

    def optimisation(self, role: Role) -> Optimisation:
        """How `role` is optimised in this round."""
        return Optimisation.of(self.config)

    def loss(
        self, role: Role, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch as a share of the optimiser step, and metrics."""
        return mean_nll(outputs, batch, totals)


def mean_nll(outputs: Outputs, batch: Batch, totals: Mapping[str, float]) -> tuple[Tensor, Metrics]:
    """Mean of -log pi over the target tokens of the optimiser step: SFT on the batch's rows."""
    assert outputs.logprobs_BR is not None
    ones_B = outputs.logprobs_BR.new_ones(batch.num_rows)
    return sft_loss(outputs.logprobs_BR, batch.mask_BR, ones_B, normalizer=totals["tokens"])


def _data_answers(samples: Mapping[str, Sample]) -> Selection:
    groups: list[Group] = []
    for sample in samples.values():
        if sample.chosen is not None:
            answer = Turn(role="assistant", text=sample.chosen)
            row = Row(
                id=f"{sample.id}/chosen",
                prompt=sample.prompt,
                images=sample.images,
                turns=(answer,),
            )
            groups.append((row,))
    if not groups:
        raise UserError(
            "method.target=data: no sample of the round has an answer in the column chosen; add "
            "it to the data, or set method.target=mined"
        )
    stats = {"data/answers": len(groups), "data/no_answer": len(samples) - len(groups)}
    return Selection(groups, {name: float(value) for name, value in stats.items()})
