"""From the config's `judge` to a loaded judge."""

from __future__ import annotations

import json
from pathlib import Path

from actors.engine import EngineSpec
from actors.modules import REWARD_FILE
from actors.reward import CritiqueJudge, load_reward_settings
from cluster.config import RunConfig
from cluster.session import Session
from rewards.rules import FunctionJudge, RandomJudge, load_function
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.processing import check_model_folder


def is_function(reference: str) -> bool:
    """Whether `reference` is a `module:function` and not a folder whose name has a colon."""
    return ":" in reference and not Path(reference).exists()


def check_judge(reference: str) -> None:
    """Refuse a judge that cannot work before anything starts."""
    if reference == "random":
        return
    if is_function(reference):
        load_function(reference)
        return
    if not Path(reference).is_dir():
        raise UserError(
            f"judge {reference!r}: no such folder; give a critique model's folder, "
            "module:function, or random"
        )
    check_model_folder(reference)
    load_reward_settings(reference)


def load_judge(session: Session, reference: str, store: ImageStore, config: RunConfig) -> str:
    """Load the judge into its actor; returns its name."""
    root = str(store.root)
    if reference == "random":
        seed = config.seed
        return session.load_judge(lambda: RandomJudge(seed))
    if is_function(reference):
        return session.load_judge(lambda: FunctionJudge(reference, root))
    spec = EngineSpec(
        model_dir=reference,
        image_root=root,
        max_model_len=config.rollout.max_model_len,
        kv_cache_mib=config.rollout.kv_cache_mib,
        gpu_memory_utilization=config.rollout.gpu_memory_utilization,
        bf16=config.train.bf16,
        sleep=config.rollout.sleep,
    )
    return session.load_judge(lambda: CritiqueJudge(spec))


def critic_folder(judge: str, model_dir: str) -> str:
    """What PPO's critic starts from: the reward model, where there is one that reads the policy's
    tokens; else the policy.
    """
    if not (Path(judge) / REWARD_FILE).is_file():
        return model_dir
    vocabulary = _vocabulary(judge)
    return judge if vocabulary and vocabulary == _vocabulary(model_dir) else model_dir


def _vocabulary(folder: str) -> object:
    """What the folder's tokenizer calls its tokens, by id; None if it has no tokenizer.json."""
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = json.loads(file.read_text())
    return tokenizer["model"].get("vocab"), tokenizer.get("added_tokens")
