"""From the config's `judge` to a loaded judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.endpoint import check_token
from actors.engine import EngineSpec
from actors.judges import JudgeMaker
from actors.modules import REWARD_FILE
from actors.reward import load_reward_settings
from cluster.base_model import BuiltinModels
from cluster.config import RunConfig
from cluster.recipe import Call
from cluster.rollouts import chained, dealt
from cluster.session import Session
from rewards.asking import Choose, Failed, Prompt
from rewards.base import Judge
from rewards.config import (
    DRAWN,
    JUDGES,
    AnyJudge,
    ClaimsConfig,
    CritiqueConfig,
    FlippedConfig,
    FunctionConfig,
    RubricConfig,
    SumConfig,
    from_reference,
)
from rewards.rubric import load_rubric
from rewards.rules import load_function
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.model_folder import check_model_folder


def parts(judge: AnyJudge) -> list[AnyJudge]:
    """The judge and all judges inside it."""
    inner: list[AnyJudge] = []
    if isinstance(judge, FlippedConfig):
        inner = [judge.judge]
    elif isinstance(judge, SumConfig):
        inner = [part.judge for part in judge.parts]
    return [judge, *(found for one in inner for found in parts(one))]


def folders(judge: AnyJudge) -> tuple[str, ...]:
    """The model folders of a (resolved) judge."""
    return tuple(folder for part in parts(judge) for folder in part.folders)


def as_judge(judge: AnyJudge | str) -> AnyJudge:
    """The settings that a reference given as one string stands for."""
    if not isinstance(judge, str):
        return judge
    values = from_reference(judge)
    settings: AnyJudge = JUDGES[values["name"]].model_validate(values)  # type: ignore[assignment]
    return settings


def check_judge(judge: AnyJudge | str, *, sleep: bool = False) -> None:
    """Refuse a judge that cannot work before anything starts; `sleep` is `rollout.sleep`."""
    for part in parts(as_judge(judge)):
        if sleep and isinstance(part, ClaimsConfig) and part.asks_policy:
            raise UserError(
                "judge.labeler=policy asks the rollout engine while the judge works; set "
                "rollout.sleep=false, or give a model folder"
            )
        for folder in part.folders:
            if not Path(folder).is_dir():
                raise UserError(
                    f"judge {folder!r}: no such folder; give a critique model's folder, "
                    "module:function, or random"
                )
            check_model_folder(folder)
        if isinstance(part, CritiqueConfig) and part.model is not None:
            load_reward_settings(part.model)
        elif isinstance(part, FunctionConfig):
            load_function(part.function)
        elif isinstance(part, RubricConfig):
            load_rubric(part.rubric)
            if part.endpoint is not None:
                check_token(part.endpoint)


def needs_drawn_world(judge: AnyJudge) -> str | None:
    """Why the judge only knows the built-in world; None if it does not."""
    for part in parts(judge):
        if isinstance(part, CritiqueConfig) and part.model is None:
            return "judge.model: the built-in critique model only knows the drawn world"
        if isinstance(part, ClaimsConfig):
            if part.labeler is None:
                return "judge.labeler: the built-in honest model only knows the drawn world"
            if part.splitter == DRAWN:
                return "judge.splitter: the rules `drawn` only know the drawn world"
    return None


def needs_builtin(judge: AnyJudge | None) -> bool:
    """Whether one of the built-in models judges."""
    if judge is None:
        return True
    missing: list[str] = []

    def find(role: str) -> str:
        missing.append(role)
        return ""

    judge.resolved(find)
    return bool(missing)


def resolve(judge: AnyJudge | None, built: BuiltinModels | None) -> AnyJudge:
    """The judge's settings with the folders of the built-in models filled in."""

    def find(role: str) -> str:
        assert built is not None, "needs_builtin was not asked"
        return str(getattr(built, role))

    return (judge or CritiqueConfig()).resolved(find)


@dataclass(frozen=True)
class AskPolicy:
    """First-token probabilities of the policy as the rollout engine holds it now."""

    rollouts: Sequence[Any]
    """The engines' handles."""

    def __call__(
        self, prompts: Sequence[Prompt], words: Sequence[str]
    ) -> list[dict[str, float] | Failed]:
        """As `rewards.asking.Choose`."""
        parts = dealt(Call("choose", (prompts, words)), len(self.rollouts))
        answers: list[dict[str, float] | Failed] = chained(
            ray.get(
                [
                    rollout.choose.remote(*part.args)
                    for rollout, part in zip(self.rollouts, parts, strict=True)
                    if part is not None
                ]
            )
        )
        return answers


def load_judge(
    session: Session, judge: AnyJudge | str, store: ImageStore, config: RunConfig
) -> str:
    """Load the (resolved) judge into its actor, unless it is there; returns its name."""
    judge = as_judge(judge)
    engine = EngineSpec(
        model_dir="",
        image_root=str(store.root),
        max_model_len=config.rollout.max_model_len,
        kv_cache_mib=config.rollout.kv_cache_mib,
        gpu_memory_utilization=config.rollout.gpu_memory_utilization,
        bf16=config.train.bf16,
        sleep=config.rollout.sleep and session.shares("judge"),
    )
    max_tokens, seed = config.rollout.max_tokens, config.seed
    rows = config.train.micro_batch_size
    key = f"{engine} {seed} {max_tokens} {rows} {judge.model_dump_json()}"
    if session.ask("judge", "key", limit="load") == key:
        return str(session.ask("judge", "name", limit="answer"))

    def load() -> Call:
        ask: Choose | None = AskPolicy(session.handles("rollout")) if judge.asks_policy else None

        def make() -> Judge:
            return JudgeMaker(engine, max_tokens, seed, rows, ask).make(judge)

        return Call("load", (make, key))

    name = str(session.ask("judge", "load", *load().args, limit="load"))
    session.served("judge").recipe.load = load  # a new judge asks the rollout engine of its day
    return name


def critic_folder(judge: AnyJudge, model_dir: str) -> str:
    """What PPO's critic starts from: the reward model, where there is one that reads the policy's
    tokens; else the policy.
    """
    folder = judge.reward_model
    if folder is None or not (Path(folder) / REWARD_FILE).is_file():
        return model_dir
    vocabulary = _vocabulary(folder)
    return folder if vocabulary and vocabulary == _vocabulary(model_dir) else model_dir


def _vocabulary(folder: str) -> object:
    """What the folder's tokenizer calls its tokens, by id; None if it has no tokenizer.json."""
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = json.loads(file.read_text())
    return tokenizer["model"].get("vocab"), tokenizer.get("added_tokens")
