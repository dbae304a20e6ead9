"""Options of `quartet plan`, and what they mean; no heavy import."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from trainers.data.errors import UserError

if TYPE_CHECKING:
    from cluster.planner.settings import Settings

EPILOG = """
examples:
  quartet plan --model qwen2.5-vl-7b --gpu h100
  quartet plan --model llava-1.5-7b --gpu 24gb --lora 64 --reference adapter_off
  quartet plan --model ./my-model --gpu a100-80 --gpus 8 --method ppo --offload optimizer --json
  quartet plan --placement --nodes 4 --gpus 8 --placement.gpus '{policy: 8, rollout: 8}'
"""
OWN = (
    "--model", "--gpu", "--gpus", "--gpus-per-node", "--nodes", "--method", "--zero", "--lora",
    "--lora-vision", "--freeze", "--reference", "--critic", "--offload", "--sleep", "--time-slice",
    "--no-checkpointing", "--float32", "--micro-batch", "--prompt", "--response", "--images",
    "--sequences", "--chunk", "--placement", "--config", "--json",
)  # fmt: skip
"""What is not a setting."""
OFFLOADED: dict[str | None, Literal["device", "cpu", "nvme"]] = {
    None: "device",
    "optimizer": "cpu",
    "nvme": "nvme",
}
"""`--offload` -> where the optimiser is."""


def add_options(parser: argparse.ArgumentParser, methods: Sequence[str]) -> None:
    """Put the planner's options on `parser`."""
    add = parser.add_argument
    add("--model", help="preset name, or a folder with a config.json")
    add("--gpu", default="h100", help="card by name (h100, a100-40, rtx4090) or size (24gb)")
    add(
        "--gpus",
        "--gpus-per-node",
        type=_count,
        help="number of GPUs (default: the smallest that fits)",
    )
    add("--nodes", type=_count, help="number of nodes; with --gpus, GPUs of each")
    add("--method", default="all", choices=("all", *methods), help="all: ppo, dpo, nsft, sft")
    add("--zero", type=int, default=3, choices=(0, 1, 2, 3), help="DeepSpeed ZeRO stage (3)")
    add("--lora", type=int, default=0, metavar="RANK", help="adapters of this rank; 0 trains all")
    add("--lora-vision", action="store_true", help="adapters in the vision tower, too")
    parts = ("vision", "projector", "language")
    add("--freeze", nargs="+", default=(), choices=parts, metavar="PART", help=", ".join(parts))
    modes = ("own_copy", "on_host", "adapter_off", "cached")
    add("--reference", default="own_copy", choices=modes)
    add(
        "--critic",
        default="own_copy",
        choices=("own_copy", "shared_base"),
        help="shared_base: PPO's critic is adapters and a head on the policy's base",
    )
    add(
        "--offload",
        choices=("optimizer", "nvme"),
        help="optimiser states and masters on the host, or on a disk (ZeRO 3)",
    )
    add(
        "--sleep",
        action="store_true",
        help="engines leave the GPU while others work (a run's rollout.sleep)",
    )
    add("--time-slice", action="store_true", help="one copy on the GPU at a time")
    add("--no-checkpointing", action="store_true", help="keep all activations")
    add("--float32", action="store_true", help="instead of bfloat16")
    add("--micro-batch", type=_count, default=2, metavar="ROWS", help="a pair is two rows (2)")
    add("--prompt", type=_count, default=128, metavar="TOKENS", help="beside the image (128)")
    add("--response", type=_count, default=512, metavar="TOKENS", help="(512)")
    add("--images", type=_count, default=1, help="per prompt (1)")
    add("--sequences", type=_count, default=32, help="responses that an engine writes at once (32)")
    add("--chunk", type=_count, default=512, metavar="TOKENS", help="logits at once (512)")
    add(
        "--placement",
        action="store_true",
        help="instead: which process is on which GPU of --nodes (1) times --gpus (8), and the "
        "derivation of the batch sizes; takes a run's settings",
    )
    add("--config", help="with --placement: YAML with a run's settings")
    add("--json", action="store_true", help="print JSON only")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The planner's settings.

    Raises:
        UserError: options that do not go together.
    """
    from cluster.planner.settings import Settings

    if arguments.reference == "adapter_off" and not arguments.lora:
        raise UserError(
            "--reference adapter_off needs --lora RANK: without adapters there is nothing to turn "
            "off; --reference cached does without a copy, too"
        )
    if arguments.critic == "shared_base" and (
        not arguments.lora or arguments.zero == 3 or arguments.time_slice
    ):
        raise UserError(
            "--critic shared_base needs --lora RANK, --zero 0, 1 or 2, and no --time-slice: a base "
            "that is frozen, whole, and stays"
        )
    if arguments.offload and not arguments.zero:
        raise UserError("--offload optimizer needs --zero 1, 2 or 3, which own the optimiser")
    if arguments.offload == "nvme" and arguments.zero != 3:
        raise UserError("--offload nvme needs --zero 3, the only stage that has it")
    if arguments.offload and arguments.time_slice:
        raise UserError("--time-slice moves optimiser states with their copy; leave out --offload")
    if arguments.lora_vision and not arguments.lora:
        raise UserError("--lora-vision needs --lora RANK")
    if arguments.freeze and arguments.lora:
        raise UserError("--freeze: adapters freeze all weights; leave out --freeze or --lora")
    if len(set(arguments.freeze)) == 3:
        raise UserError("--freeze: with all three parts frozen, nothing is left to train")
    return Settings(
        zero_stage=arguments.zero,
        bf16=not arguments.float32,
        lora_rank=arguments.lora,
        lora_vision=arguments.lora_vision,
        freeze=tuple(arguments.freeze),
        gradient_checkpointing=not arguments.no_checkpointing,
        reference=arguments.reference,
        critic=arguments.critic,
        micro_batch_size=arguments.micro_batch,
        text_tokens=arguments.prompt,
        response_tokens=arguments.response,
        images=arguments.images,
        max_num_seqs=arguments.sequences,
        chunk_size=arguments.chunk,
        sleep=arguments.sleep,
        time_slice=arguments.time_slice,
        optimizer_device=OFFLOADED[arguments.offload],
    )


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)
