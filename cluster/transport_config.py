"""What a run's settings say of how weights get to its engines, before anything is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.transports import DIRECT, TransportSetting
from trainers.data.errors import UserError

if TYPE_CHECKING:
    from cluster.config import RunConfig, TrainConfig


def check_transport(train: TrainConfig) -> None:
    """Refuse a way that the rest of `train` rules out.

    Raises:
        UserError: names the key and the remedy.
    """
    if train.zero_stage == 3 and train.transport in DIRECT:
        raise UserError(
            f"train.transport={train.transport} sends weights from the device they are on, "
            "train.zero_stage=3 gathers them in host memory; leave train.transport=auto"
        )


def asked_transport(config: RunConfig) -> tuple[TransportSetting, str]:
    """`train.transport`, or the object store where other settings need it; and why, if it is."""
    if config.train.transport == "object_store":
        return "object_store", "as train.transport says"
    if config.train.lora_sync == "adapter":
        return "object_store", "train.lora_sync=adapter sends adapters alone"
    if config.overlap.off_policy_steps:
        return "object_store", (
            "overlap.off_policy_steps=1 keeps the weights for an engine that is replaced"
        )
    if config.train.zero_stage == 3:
        return "object_store", "train.zero_stage=3 gathers weights in host memory"
    return config.train.transport, ""
