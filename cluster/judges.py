"""From the config's `judge` to a loaded judge."""

from __future__ import annotations

from pathlib import Path

from actors.engine import EngineSpec
from actors.reward import CritiqueJudge, load_reward_settings
from cluster.config import RunConfig
from cluster.session import Session
from rewards.rules import FunctionJudge, RandomJudge, load_function
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.processing import check_model_folder


def check_judge(reference: str) -> None:
    """Refuse a judge that cannot work before anything starts."""
    if reference == "random":
        return
    if ":" in reference and not Path(reference).exists():
        load_function(reference)
        return
    if not Path(reference).is_dir():
        raise UserError(
            f"judge {reference!r}: no such folder; give a critique model's folder, "
            "module:function, or random"
        )
    check_model_folder(reference)
    load_reward_settings(reference)


def load_judge(
    session: Session, reference: str, store: ImageStore, config: RunConfig
) -> str:
    """Load the judge into its actor; returns its name."""
    root = str(store.root)
    if reference == "random":
        seed = config.seed
        return session.load_judge(lambda: RandomJudge(seed))
    if ":" in reference and not Path(reference).exists():
        return session.load_judge(lambda: FunctionJudge(reference, root))
    spec = EngineSpec(
        model_dir=reference,
        image_root=root,
        max_model_len=config.rollout.max_model_len,
        kv_cache_gib=config.rollout.kv_cache_gib,
        gpu_memory_utilization=config.rollout.gpu_memory_utilization,
        bf16=config.train.bf16,
    )
    return session.load_judge(lambda: CritiqueJudge(spec))
