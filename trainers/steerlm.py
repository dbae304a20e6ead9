"""SteerLM: SFT with the score, as words, in the prompt: 1 copy (policy).

    L = NLL(y | x, words for score(y)), a mean over the tokens of the optimiser step

From Dong et al. (arXiv 2310.05344), as a baseline for VLMs in mllm-dpo (arXiv 2402.10884). Good and
poor answers are learnt alike, each under the words that say how good it is; asked for the best
value, the policy gives an answer of that kind. `ask` puts those words into prompts once there has
been a round of training (the paper's bootstrap); the tuned model wants them, too.

1. An attribute is the judge's score or one of its components. The papers have five (helpfulness,
   correctness, coherence, complexity, verbosity) with values 0 to 4.
2. A value is one of `levels`, of which each covers an equal share of the first round's scores;
   boundaries are kept, so that a word means the same in every round.
3. The words stand at the end of the last user turn: `describe the image . answer four`. The
   built-in model's vocabulary has them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from trainers.batch import Batch, Group, Row
from trainers.config import SteerLMConfig
from trainers.data.errors import UserError
from trainers.data.records import Sample, ScoredRollout
from trainers.finished import finished_by_prompt
from trainers.losses import Metrics
from trainers.method import Method, Optimisation, Outputs, Selection
from trainers.roles import Copy, Role
from trainers.sft import mean_nll


class SteerLM(Method):
    """SteerLM; see the module's head."""

    name = "steerlm"
    copies = (Copy("policy", trained=True),)
    asks_alike = False

    def __init__(self, config: SteerLMConfig):
        self.config = config
        self.boundaries: dict[str, list[float]] = {}
        """Attribute -> where its levels meet; empty before the first round."""

    def select(
        self, scored: Sequence[ScoredRollout], samples: Mapping[str, Sample], rng: random.Random
    ) -> Selection:
        """A row for every finished response; its prompt says how good the response is."""
        config = self.config
        stats: dict[str, float] = {}
        items = [item for each in finished_by_prompt(scored, stats).values() for item in each]
        values = {name: [_value(item, name) for item in items] for name in config.attributes}
        if items and not self.boundaries:
            shares = np.arange(1, len(config.levels)) / len(config.levels)
            self.boundaries = {
                name: [float(each) for each in np.quantile(values[name], shares)]
                for name in config.attributes
            }
        groups: list[Group] = []
        best = 0
        for index, item in enumerate(items):
            levels = {name: self._level(name, values[name][index]) for name in config.attributes}
            best += all(level == len(config.levels) - 1 for level in levels.values())
            sample = self._told(samples[item.rollout.sample_id], levels)
            groups.append((Row.of_response(sample, item.rollout.token_ids, item.rollout.id),))
        stats["steerlm/share_best"] = best / max(len(items), 1)
        return Selection(groups, stats, why_empty="no response has a score and ended by itself")

    def ask(self, sample: Sample) -> Sample:
        """The sample with the best value of every attribute in its prompt, once they are known."""
        if not self.boundaries:
            return sample
        return self._told(sample, dict.fromkeys(self.config.attributes, -1))

    def _level(self, name: str, value: float) -> int:
        """How many boundaries `value` has reached; the largest value reaches all of them."""
        return int(np.searchsorted(self.boundaries[name], value, side="right"))

    def _told(self, sample: Sample, levels: Mapping[str, int]) -> Sample:
        words = [f"{self.config.attributes[n]} {self.config.levels[i]}" for n, i in levels.items()]
        *before, last = sample.prompt
        return replace(sample, prompt=(*before, replace(last, text=" ".join([last.text, *words]))))

    def state(self) -> dict[str, Any]:
        """Where the levels meet."""
        return {"boundaries": self.boundaries}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.boundaries = {name: list(values) for name, values in state["boundaries"].items()}

    def optimisation(self, role: Role) -> Optimisation:
        """How `role` is optimised in this round."""
        return Optimisation.of(self.config)

    def loss(
        self, role: Role, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch as a share of the optimiser step, and metrics."""
        return mean_nll(outputs, batch, totals)


def _value(item: ScoredRollout, name: str) -> float:
    if name == "score":
        assert item.score is not None
        return item.score
    if name not in item.components:
        known = ", ".join(["score", *item.components])
        raise UserError(
            f"method.attributes: {item.rollout.id} has no component {name!r} from judge "
            f"{item.judge}; it has: {known}"
        )
    return item.components[name]
