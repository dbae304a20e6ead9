"""The text model of a run, if its settings name one: who loads it and who asks it."""

from __future__ import annotations

from collections.abc import Sequence

from actors.text import TextSpec, check_text_model
from cluster.arm import Arm
from cluster.config import RunConfig
from cluster.session import Session
from trainers.data.errors import UserError

INJECTOR, CORRECTIONS = "negatives.injector", "method.corrections.model"


def writer_folder(config: RunConfig) -> str | None:
    """Folder of the run's text model, None for a run without one.

    Raises:
        UserError: two different ones, or one that cannot be loaded.
    """
    corrections = getattr(config.method, "corrections", None)
    wanted = {
        INJECTOR: config.negatives.injector if config.negatives.rejected else None,
        CORRECTIONS: None if corrections is None else corrections.model,
    }
    named = {key: folder for key, folder in wanted.items() if folder is not None}
    for key, folder in named.items():
        check_text_model(folder, key)
    if len(set(named.values())) > 1:
        raise UserError(f"{INJECTOR} and {CORRECTIONS} differ; one text model is loaded a run")
    return next(iter(named.values()), None)


def load_writer(session: Session, arm: Arm) -> None:
    """Load the run's text model, if it has one, and hand it to the method."""
    folder = writer_folder(arm.config)
    if folder is None:
        return
    spec = TextSpec(
        model_dir=folder,
        kv_cache_mib=arm.config.rollout.kv_cache_mib,
        bf16=arm.config.train.bf16,
    )
    session.ask("writer", "load", spec, limit="load")
    arm.method.text_model = lambda requests: ask_writer(session, arm, requests)


def ask_writer(session: Session, arm: Arm, requests: Sequence[str]) -> list[str | None]:
    """The text model's replies."""
    seed = arm.config.seed * 1000 + arm.round
    replies: list[str | None] = session.ask(
        "writer", "reply", list(requests), limit="generate", seed=seed
    )
    return replies
