"""From a judge's settings to the judge, with the engines that it needs, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from actors.choices import choose
from actors.endpoint import ChatEndpoint
from actors.engine import Engine, EngineSpec, Request
from actors.judge_models import HostedJudge, ModelJudge
from actors.reward import CritiqueJudge
from rewards.asking import Choose, Complete, Failed, Prompt
from rewards.base import Judge
from rewards.claims import ClaimsJudge, Split
from rewards.compose import SumJudge
from rewards.config import (
    DRAWN,
    POLICY,
    AnyJudge,
    ClaimsConfig,
    CritiqueConfig,
    FlippedConfig,
    FunctionConfig,
    LongestConfig,
    RandomConfig,
    RubricConfig,
    RulesConfig,
    SumConfig,
)
from rewards.controls import FlippedJudge, LongestJudge
from rewards.drawn_claims import drawn_claims
from rewards.model_claims import model_split
from rewards.rubric import RubricJudge, load_rubric
from rewards.rule_judge import RuleJudge
from rewards.rules import FunctionJudge, RandomJudge
from trainers.data.images import ImageStore


@dataclass
class JudgeMaker:
    """Makes judges, and keeps the engines that they share: one for each model folder."""

    engine: EngineSpec
    """Of every engine, but for the model's folder."""
    max_tokens: int
    """Longest response of the policy."""
    seed: int
    micro_batch_size: int
    """Rows of a scoring model's forward."""
    ask_policy: Choose | None = None
    """Asks the policy as it is now; None where there is no rollout engine."""
    _engines: dict[str, Engine] = field(default_factory=dict)
    _parts: list[ModelJudge] = field(default_factory=list)

    def make(self, config: AnyJudge) -> Judge:
        """The judge; a `ModelJudge` if it holds any model."""
        judge = self._make(config)
        if isinstance(judge, ModelJudge) or not (self._engines or self._parts):
            return judge
        return HostedJudge(judge, list(self._engines.values()), self._parts)

    def _make(self, config: AnyJudge) -> Judge:
        match config:
            case CritiqueConfig():
                return self._critique(config)
            case ClaimsConfig():
                return self._claims(config)
            case RubricConfig():
                return RubricJudge(load_rubric(config.rubric), self._writer_of(config))
            case RulesConfig():
                return RuleJudge(config, self.max_tokens)
            case FunctionConfig():
                return FunctionJudge(config.function, self.engine.image_root)
            case RandomConfig():
                return RandomJudge(self.seed)
            case LongestConfig():
                return LongestJudge()
            case FlippedConfig():
                return FlippedJudge(self._make(config.judge), config.share, self.seed)
            case SumConfig():
                return SumJudge([(part.weight, self._make(part.judge)) for part in config.parts])

    def _critique(self, config: CritiqueConfig) -> CritiqueJudge:
        assert config.model is not None, "resolve the settings first"
        judge = CritiqueJudge(
            replace(self.engine, model_dir=config.model),
            batch_size=self.micro_batch_size,
            num_critiques=config.num_critiques,
            temperature=config.temperature,
            in_process=config.generator == "in_process",
            facts=config.facts,
            seed=self.seed,
        )
        self._parts.append(judge)
        return judge

    def _claims(self, config: ClaimsConfig) -> ClaimsJudge:
        split: Split = drawn_claims
        if config.splitter != DRAWN:
            splitter, converter = (
                writer(self._engine(folder), config.max_claim_tokens)
                for folder in (config.splitter, config.converter)
            )
            split = model_split(splitter, converter)
        if config.labeler == POLICY:
            assert self.ask_policy is not None, "checked when the settings were read"
            return ClaimsJudge(split, self.ask_policy)
        assert config.labeler is not None, "resolve the settings first"
        return ClaimsJudge(split, chooser(self._engine(config.labeler)))

    def _writer_of(self, config: RubricConfig) -> Complete:
        if config.endpoint is not None:
            store = ImageStore(self.engine.image_root)
            return ChatEndpoint(config.endpoint, store, config.max_tokens)
        assert config.model is not None, "checked when the settings were read"
        return writer(self._engine(config.model), config.max_tokens)

    def _engine(self, folder: str) -> Engine:
        if folder not in self._engines:
            self._engines[folder] = Engine(replace(self.engine, model_dir=folder))
        return self._engines[folder]


def writer(engine: Engine, max_tokens: int) -> Complete:
    """Greedy answers of an engine."""

    def complete(prompts: Sequence[Prompt]) -> list[str | Failed]:
        answers = engine.generate(
            [Request(prompt.turns, prompt.images) for prompt in prompts],
            temperature=0.0,
            max_tokens=max_tokens,
        )
        return [Failed(a) if isinstance(a, str) else a[0].text for a in answers]

    return complete


def chooser(engine: Engine) -> Choose:
    """First-token probabilities of an engine."""
    bound: Callable[[Sequence[Prompt], Sequence[str]], list[dict[str, float] | Failed]]
    bound = lambda prompts, words: choose(engine, prompts, words)  # noqa: E731
    return bound
