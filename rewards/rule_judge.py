"""A judge of rules: right answers, length, missing EOS. It never sees an image.

    score = answer_weight * answer - length_penalty * tokens / max_tokens - [no EOS] * eos_penalty

LLaVA-RLHF (arXiv 2309.14525, section "Factually augmented RLHF" and its training script) adds these
three to its reward model with the values 2 (on `fact_rlhf_bonus`), 10 (times a multiplier for each
prompt, which we leave out) and 8; `rewards.compose` does the adding.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.base import JudgeItem, Judgement
from rewards.config import RulesConfig
from rewards.right_answers import fact_rlhf_bonus, is_correct, right_answer


class RuleJudge:
    """Scores by rules; components: `answer`, `length`, `eos`, as they enter the score."""

    name = "rules"

    def __init__(self, config: RulesConfig, max_tokens: int):
        self.config, self.max_tokens = config, max_tokens

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """One judgement per item."""
        return [self._one(item) for item in items]

    def _one(self, item: JudgeItem) -> Judgement:
        config, rollout = self.config, item.rollout
        components = {
            "length": -config.length_penalty * len(rollout.token_ids) / self.max_tokens,
            "eos": -config.missing_eos_penalty * float(rollout.finish_reason != "stop"),
        }
        if config.answers != "off":
            answer = right_answer(item.sample.truth)
            if answer is not None:
                rule = fact_rlhf_bonus if config.answers == "fact_rlhf" else is_correct
                components["answer"] = config.answer_weight * float(rule(answer, rollout.text))
            elif config.unanswerable == "fail":
                return Judgement(
                    failure="rules: the prompt has no right answer; set judge.unanswerable=skip, "
                    "or judge.answers=off"
                )
        return Judgement(score=sum(components.values()), components=components)
