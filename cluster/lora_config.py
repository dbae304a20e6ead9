"""Which settings of adapters fit together, and with the rest of `train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainers.data.errors import UserError

if TYPE_CHECKING:
    from cluster.config import TrainConfig


def check_adapters(train: TrainConfig) -> None:
    """Refuse settings that need adapters without any, and ways that adapters cannot go.

    Raises:
        UserError: names the key and the remedy.
    """
    if train.lora_rank == 0:
        _check_without(train)
    if train.critic == "shared_base":
        _check_shared_base(train)
    if train.lora_sync == "adapter" and train.transport in ("ipc", "nccl"):
        raise UserError(
            f"train.transport={train.transport} sends whole weights, train.lora_sync=adapter does "
            "not; leave train.transport=auto"
        )


def _check_without(train: TrainConfig) -> None:
    if train.critic == "shared_base":
        raise UserError(
            "train.critic=shared_base needs train.lora_rank above 0: only a frozen base can be "
            "shared"
        )
    if train.reference == "adapter_off":
        raise UserError(
            "train.reference=adapter_off needs train.lora_rank above 0: without adapters there "
            "is nothing to turn off; set train.reference=cached to do without a copy"
        )
    for key in ("lora_alpha", "lora_vision", "lora_sync"):
        if getattr(train, key) not in (None, False, "merged"):
            raise UserError(f"train.{key} needs train.lora_rank above 0; 0 trains all weights")


def _check_shared_base(train: TrainConfig) -> None:
    if train.zero_stage == 3:
        raise UserError(
            "train.critic=shared_base needs train.zero_stage 0, 1 or 2: under ZeRO-3 a base "
            "belongs to one engine"
        )
    if train.time_slice:
        raise UserError(
            "train.critic=shared_base leaves nothing to take turns with: policy and critic are "
            "on one base; leave train.time_slice=false"
        )
