"""SAPO, self-augmented preference optimisation: 2 copies (policy, its moving average).

From Yin et al. (arXiv 2405.20830). Needs only right answers: the moving average of the policy
samples a piece of one anew, and the result is the rejected answer (`negatives.rejected=[segment]`,
`segment_writer=reference`). Pairs wait in a buffer and are drawn the less the more often they were
used; the loss is DPO's with the moving average as reference.

The same letters also stand for "soft adaptive policy optimisation", another method. The paper's
optimiser is RMSprop; here it is Adam as everywhere. The average moves once a round.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trainers.batch import Group
from trainers.config import DPOConfig, SAPOConfig
from trainers.data.records import Sample, ScoredRollout
from trainers.dpo import DPO
from trainers.method import Selection
from trainers.row_state import row_from, row_state


class SAPO(DPO):
    """SAPO; see the module's head."""

    name = "sapo"
    driver_only = ("text_model", "replay")

    def __init__(self, config: SAPOConfig):
        shared = config.model_dump(include=DPOConfig.model_fields.keys() - {"name"})
        super().__init__(DPOConfig.model_validate(shared))
        self.refresh_rate = config.ema_rate
        self.replay = PairReplay(config.replay_capacity)
        self.replay_draws = config.replay_draws

    def most_groups(self, num_prompts: int, num_answers: int) -> int:
        """As many as are drawn, which is what came unless it is set."""
        return self.replay_draws or super().most_groups(num_prompts, num_answers)

    def select(
        self, scored: Sequence[ScoredRollout], samples: Mapping[str, Sample], rng: random.Random
    ) -> Selection:
        """Put the round's pairs into the buffer and draw the rows to train on from it."""
        fresh = super().select(scored, samples, rng)
        self.replay.add(fresh.groups)
        taken = self.replay.draw(self.replay_draws or len(fresh.groups), rng)
        # Without the signals of an earlier round: the reference has moved since.
        drawn = [tuple(replace(row, tokens={}) for row in group) for group in taken]
        stats = {**fresh.stats, "replay/size": float(len(self.replay))}
        stats["replay/drawn"] = float(len(drawn))
        return Selection(drawn, stats, fresh.why_empty)

    def state(self) -> dict[str, Any]:
        """The buffer."""
        return {"replay": self.replay.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.replay.load_state(state["replay"])


class PairReplay:
    """The latest `capacity` groups, first in first out, and how often each was drawn."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._groups: list[Group] = []
        self._uses: list[int] = []

    def __len__(self) -> int:
        return len(self._groups)

    def state(self) -> dict[str, Any]:
        """Groups and uses."""
        groups = [[row_state(row) for row in group] for group in self._groups]
        return {"groups": groups, "uses": list(self._uses)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self._groups = [tuple(row_from(row) for row in group) for group in state["groups"]]
        self._uses = list(state["uses"])

    def add(self, groups: Sequence[Group]) -> None:
        """Append; the oldest leave when there are too many."""
        self._groups = [*self._groups, *groups][-self.capacity :]
        self._uses = [*self._uses, *[0] * len(groups)][-self.capacity :]

    def draw(self, number: int, rng: random.Random) -> list[Group]:
        """Up to `number` different groups, each with weight 1 / (uses + 1).

        The largest of u^(1/weight), u uniform, are such a draw without replacement (Efraimidis and
        Spirakis, 2006). Limiting case: with equal uses every group is as likely.
        """
        keys = [rng.random() ** (uses + 1) for uses in self._uses]
        order = sorted(range(len(keys)), key=keys.__getitem__, reverse=True)[:number]
        for index in order:
            self._uses[index] += 1
        return [self._groups[index] for index in order]
