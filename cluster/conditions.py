"""Asks an arm's processes what they run under."""

from __future__ import annotations

from cluster.arm import Arm
from cluster.session import Session
from trainers.conditions import Conditions, Overlap


def measure_conditions(session: Session, arm: Arm) -> Conditions:
    """Conditions of the arm's policy, the largest micro-batch of all ranks, and of the engine."""
    ranks: list[Conditions] = session.trainer("policy").ask("conditions", limit="answer")
    batches = [rank.micro_batch for rank in ranks if rank.micro_batch is not None]
    path = ranks[0].logprob_path
    if path is not None and any(copy.role == "reference" for copy in arm.method.copies):
        path = path.model_copy(update={"reference": arm.config.train.reference})
    engine = None
    if session.has("rollout"):
        engine = session.ask("rollout", "conditions", limit="answer")
    return Conditions(
        precision=ranks[0].precision,
        micro_batch=max(batches, key=lambda batch: batch.tokens, default=None),
        shards=ranks[0].shards,
        logprob_path=path,
        rollout_copy=engine,
        overlap=Overlap.model_validate(
            arm.config.overlap.model_dump(include=set(Overlap.model_fields))
        ),
    )
