"""The policy's weights to whoever answers or scores with them, and the proof that they arrived."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from actors.weight_sync import Adapters, CorruptBucketError
from cluster.arm import Arm
from cluster.direct_sync import send_directly
from cluster.failures import RunStoppedError, one_line
from cluster.recipe import Call
from cluster.residency import at_work, awake
from cluster.session import Session
from trainers.batch import Row
from trainers.data.records import Rollout, Sample

PROBE_TOKENS = 8
"""Of a parity probe's answer: what is stale or shifted shows in every token, and each more is one
more step of the engine."""


def policy_buckets(session: Session, arm: Arm, adapters: Adapters = "merged") -> Any:
    """The policy's weights in the object store (rank 0's; the other ranks only take part)."""
    train = arm.config.train
    with at_work(session, arm, "policy"):
        asked = session.trainer("policy").send(
            "weight_buckets",
            train.bucket_mib * 2**20,
            checked=arm.round % train.checksum_every == 0,
            adapters=adapters,
        )
        session.wait([replace(asked[0], stays=True), *asked[1:]], "sync")
    return asked[0].reference


def sync(session: Session, arm: Arm, *, has_base: bool = False) -> None:
    """Policy -> rollout engine: buckets, checksums, caches reset, a new version.

    With `train.lora_sync=adapter` an engine that `has_base` is given the adapters alone.
    """
    arm.version = arm.round + 1
    recipe = session.served("rollout").recipe
    version = arm.version
    served = arm.config.train.lora_sync == "adapter"
    whole = partial(policy_buckets, session, arm, "beside" if served else "merged")
    direct = session.transport is not None and session.transport.transport != "object_store"
    if direct and send_directly(session, arm, version):
        # What a new engine gets does not depend on the others.
        recipe.weights = lambda: Call("update_weights", (whole(), version))
        return
    keep = arm.config.overlap.off_policy_steps > 0
    short = partial(policy_buckets, session, arm, "alone") if served and has_base else whole
    give_weights(session, arm, whole if keep else short, version, anew=whole, keep=keep)


def give_weights(
    session: Session,
    arm: Arm,
    make: Callable[[], Any],
    version: int,
    *,
    anew: Callable[[], Any] | None = None,
    keep: bool = False,
) -> None:
    """Load the buckets that `make` gives into the rollout engine. What a new process would need is
    `anew`, by default the same. With `keep` they stay in the object store for it: `anew` would give
    later weights by then.
    """
    whole = anew or make
    kept: list[Any] = []

    def load(buckets: Any) -> None:
        kept[:] = [buckets] if keep else []
        with awake(session, arm, "rollout"):
            session.ask("rollout", "update_weights", buckets, version, limit="sync")

    _send(session, make, load)
    if arm.ledger is not None:
        arm.ledger.count_objects(arm.round)  # while the buckets are still there
    session.served("rollout").recipe.weights = lambda: Call(
        "update_weights", (kept[0] if kept else whole(), version)
    )


def refresh_reference(session: Session, arm: Arm, role: str, rate: float) -> None:
    """The policy's weights into a copy that follows it."""

    def refresh(buckets: Any) -> None:
        with at_work(session, arm, role):
            session.ask(role, "refresh", buckets, rate, limit="sync")

    _send(session, lambda: policy_buckets(session, arm), refresh)
    recipe = session.served(role).recipe
    if rate < 1:
        # A moving average is nowhere else: what a new process would need is kept.
        size = arm.config.train.bucket_mib * 2**20
        with at_work(session, arm, role):
            kept = session.ask(role, "weight_buckets", size, limit="sync", stays=True)
        recipe.weights = partial(Call, "refresh", (kept, 1.0))
    else:
        # The policy does not change before the copy has scored the next round.
        recipe.weights = lambda: Call("refresh", (policy_buckets(session, arm), 1.0))


def _send(session: Session, make: Callable[[], Any], load: Callable[[Any], None]) -> None:
    """Load what `make` gives; what was corrupted on the way is sent once more. The receiver has
    kept what it had.
    """
    for last in (False, True):
        try:
            load(make())
            return
        except CorruptBucketError as error:
            if last:
                raise
            session.console.warn(f"{one_line(error)}; it is sent again")


def require_version(arm: Arm, rollouts: Sequence[Rollout], *, behind: int = 0) -> None:
    """Stop the run if the engine answered with other weights than the last sync's, or than those
    of so many syncs `behind` it.
    """
    for rollout in rollouts:
        if rollout.policy_version != arm.version - behind:
            meant = f", and rollouts are {behind} behind it" if behind else ""
            raise RunStoppedError(
                f"{arm.name}: rollout {rollout.id} is from weights {rollout.policy_version}, the "
                f"last sync was {arm.version}{meant}; the engine holds stale weights"
            )


def check_parity(session: Session, arm: Arm, samples: Sequence[Sample]) -> float:
    """Mean |rollout logprob - trainer logprob| of fresh rollouts; stops the run if too large.

    These probe rollouts are outside the method's budget: nothing is judged or trained on them.
    """
    config = arm.config
    most = min(config.rollout.max_tokens, PROBE_TOKENS)
    probes = samples[: config.train.parity_rollouts]
    with awake(session, arm, "rollout"):
        rollouts, _ = session.ask(
            "rollout",
            "generate",
            probes,
            limit="generate",
            num_rollouts_per_prompt=1,
            temperature=config.rollout.temperature,
            max_tokens=most,
            seed=config.seed,
            prefix="parity/",
        )
    require_version(arm, rollouts)
    by_id = {sample.id: sample for sample in probes}
    rows = [Row.of_response(by_id[r.sample_id], r.token_ids, r.id) for r in rollouts]
    with at_work(session, arm, "policy"):
        trained = session.trainer("policy").score_rows(rows)
    gaps = [
        np.abs(np.asarray(rollout.logprobs) - values)
        for rollout, values in zip(rollouts, trained, strict=True)
    ]
    mean = float(np.concatenate(gaps).mean())
    if not mean < config.train.parity_tolerance:
        raise RunStoppedError(
            f"{arm.name}: after the weight sync, rollout and trainer log-probabilities differ by "
            f"{mean:.2e} on average (train.parity_tolerance={config.train.parity_tolerance:g}); "
            "the engine may hold stale weights or caches, or the dtypes differ"
        )
    return mean
