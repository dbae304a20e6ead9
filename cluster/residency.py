"""Which copies are in memory, and where: loading, taking turns on the device, counting bytes.

Copies take turns under `train.time_slice` (`at_work`), engines under `rollout.sleep` (`awake`), and
only where roles share a GPU: one that has its own has nobody to make room for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from actors.train_spec import TrainSpec
from cluster.arm import Arm
from cluster.session import Session
from trainers.roles import resident_in_training


def place(session: Session, arm: Arm) -> None:
    """Load the copies that stay in the method's training step, and free every other one."""
    session.wait.deadlines = arm.config.deadlines
    resident = resident_in_training(arm.method.copies, arm.config.train.reference)
    if arm.config.train.offload_optimizer == "nvme":
        session.console.line("the first use of a disk compiles DeepSpeed's access for some minutes")
    with arm.phase("load"):
        for role in {"critic", "reference"} - set(resident):
            session.unload(role)
        for role in arm.method.trained:
            if role == "critic" and arm.config.train.critic == "shared_base":
                session.load_tenant(role, "policy", train_spec(arm, role))
            else:
                session.load_trainer(role, train_spec(arm, role))
            take_turns(session, arm, role)
        if "reference" in resident:
            load_reference(session, arm)
            take_turns(session, arm, "reference")
        take_turns(session, arm, "judge")
    session.write_processes()


def clear_disk(session: Session, arm: Arm) -> None:
    """Free copies whose optimiser is on a disk: its files are of no use after the run."""
    if arm.config.train.offload_optimizer == "nvme":
        for role in arm.method.trained:
            session.unload(role)


def leaves(session: Session, arm: Arm, role: str) -> bool:
    """Whether a copy is in host memory while it does not work."""
    train = arm.config.train
    if role == "reference" and train.reference == "on_host":
        return True
    return train.time_slice and session.shares(role)


def take_turns(session: Session, arm: Arm, role: str) -> None:
    """Send a copy that was just loaded or used to host memory, if it is one that leaves."""
    if leaves(session, arm, role) and session.has(role):
        _move(arm, lambda: session.park(role))


def wake_all(session: Session, arm: Arm) -> None:
    """Bring the trained copies back to stay, for whoever saves or evaluates them."""
    if arm.config.train.time_slice:
        for role in arm.method.trained:
            if leaves(session, arm, role):
                session.wake(role)


@contextmanager
def at_work(session: Session, arm: Arm, *roles: str) -> Iterator[None]:
    """Inside, the roles' copies are on the device; after it those that leave it are again in host
    memory. A copy that stays, but shares its GPU, gives back the room that its activations took.
    """
    if away := [role for role in roles if leaves(session, arm, role)]:
        _move(arm, lambda: sum(session.wake(role) for role in away))
    try:
        yield
    finally:
        for role in roles:
            take_turns(session, arm, role)
    for role in roles:
        stays = session.has(role) and not leaves(session, arm, role)
        if stays and session.plan.on_gpu and session.shares(role):
            session.give_back(role)


@contextmanager
def awake(session: Session, arm: Arm, role: Literal["rollout", "judge"]) -> Iterator[None]:
    """Inside, the role's engine is on the device; before and after it sleeps, if the run is one in
    which engines do.
    """
    if not (arm.config.rollout.sleep and session.shares(role)):
        yield
        return
    _move(arm, lambda: session.wake_up(role))
    try:
        yield
    finally:
        _move(arm, lambda: session.sleep(role))


def forget_requests(session: Session, arm: Arm) -> None:
    """Empty the engines' caches before a round: what they were asked earlier (an evaluation, a
    check) shifts how requests are batched, and with it the last bits of what is sampled. A run that
    goes on from a checkpoint was not asked those. Engines that sleep have emptied theirs.
    """
    sleeps = arm.config.rollout.sleep
    roles = [
        r for r in ("rollout", "judge") if session.has(r) and not (sleeps and session.shares(r))
    ]
    begun = [session.served(role).begin("forget_requests") for role in roles]
    for role, each in zip(roles, begun, strict=True):
        session.served(role).finish(each, limit="answer")


def _move(arm: Arm, action: Callable[[], int]) -> None:
    """Count the bytes that `action` moves, and its seconds."""
    begun = time.perf_counter()
    arm.result.memory.moved_bytes += action()
    arm.result.memory.moving_seconds += time.perf_counter() - begun


def load_reference(session: Session, arm: Arm) -> None:
    """The model that the run starts from, as a frozen copy."""
    session.ask("reference", "load", train_spec(arm, "reference"), limit="load")


def train_spec(arm: Arm, role: str) -> TrainSpec:
    """What the trainer of `role` loads."""
    train = arm.config.train
    own_critic = role == "critic" and train.critic == "own_copy"
    return TrainSpec(
        role=role,
        model_dir=arm.critic_dir if own_critic else arm.model_dir,
        image_root=arm.image_root,
        temperature=arm.config.rollout.temperature,
        zero_stage=train.zero_stage,
        micro_batch_size=train.micro_batch_size,
        micro_batch_tokens=train.max_tokens_per_micro_batch,
        packing=train.packing,
        share_images=train.share_images,
        chunk_size=train.logprob_chunk,
        gradient_clip=train.gradient_clip,
        betas=(train.adam_beta1, train.adam_beta2),
        weight_decay=train.weight_decay,
        bf16=train.bf16,
        gradient_checkpointing=train.gradient_checkpointing,
        liger=train.liger,
        frozen=train.freeze,
        offload_optimizer=train.offload_optimizer,
        nvme_path=train.nvme_path,
        lora_rank=train.lora_rank,
        lora_alpha=train.lora_alpha,
        lora_vision=train.lora_vision,
        lora_seed=arm.config.seed,
    )


def measure_memory(session: Session, arm: Arm) -> dict[str, dict[str, int]]:
    """Bytes by copy and kind of what exists now, each storage counted once per process."""
    sizes: dict[str, dict[str, int]] = {}
    for role in arm.method.trained:
        ranks = session.trainer(role).ask("memory", limit="answer")
        sizes[role] = {kind: sum(rank[kind] for rank in ranks) for kind in ranks[0]}
    # In a comparison a judge may be there for other arms.
    judged = session.has("judge") and arm.config.negatives.needs_judge
    judge = session.ask("judge", "memory", limit="answer") if judged else {}
    frozen = {copy.role for copy in arm.method.copies if not copy.trained}
    if "reference" in frozen and session.has("reference"):
        sizes["reference"] = session.ask("reference", "memory", limit="answer")
    if "reward" in judge:
        sizes["reward" if "reward" in frozen else "judge"] = judge["reward"]
    if "judge_engine" in judge:
        sizes["judge_engine"] = judge["judge_engine"]
    if session.has("writer"):
        sizes["writer"] = session.ask("writer", "memory", limit="answer")
    if session.has("rollout"):
        sizes["rollout_engine"] = session.ask("rollout", "memory", limit="answer")
    return {copy: kinds for copy, kinds in sizes.items() if kinds}
