"""The text model of a run, if its settings name one: who loads it and who asks it."""

from __future__ import annotations

from collections.abc import Sequence

from actors.text import TextSpec
from cluster.arm import Arm
from cluster.session import Session
from cluster.text_model import writer_folder


def load_writer(session: Session, arm: Arm) -> None:
    """Load the run's text model and hand it to the method; without one free another arm's."""
    folder = writer_folder(arm.config)
    if folder is None:
        session.unload("writer")
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
