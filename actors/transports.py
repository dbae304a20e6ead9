"""How weights get from the policy to an engine, and which of the ways is open.

`object_store`: through host memory, checksummed; works everywhere. `ipc`: an engine on the policy's
own GPU opens a buffer there. `nccl`: to engines on other GPUs, from device to device. The last two
are vLLM's own engines. Which one is used is a pure function of what is there.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal, get_args

from trainers.data.errors import UserError

Transport = Literal["object_store", "ipc", "nccl"]
TransportSetting = Literal["auto", "object_store", "ipc", "nccl"]
DIRECT: tuple[Transport, ...] = get_args(Transport)[1:]
"""Without host memory between; the cheaper one first."""
WORDS: dict[Transport, str] = {
    "object_store": "through host memory (object store)",
    "ipc": "on the GPU that policy and engine share (vLLM's CUDA IPC engine)",
    "nccl": "from GPU to GPU (vLLM's NCCL engine)",
}
Gpu = tuple[int, int]
"""Node and GPU, by their numbers in the placement."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What the engine's process finds there."""

    cuda: bool
    vllm: str
    """Version."""
    backends: frozenset[str]
    """Weight-transfer engines that this vLLM has."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The transport that is used, and why."""

    transport: Transport
    why: str
    falls_back: bool = False
    """`auto` chose it: if it fails the object store takes its place."""

    def __str__(self) -> str:
        return f"{WORDS[self.transport]}; {self.why}"


def choose(
    asked: TransportSetting,
    reach: Reach,
    *,
    policy: Set[Gpu],
    rollout: Set[Gpu],
    takes_turns: bool = False,
) -> Choice:
    """The transport for `train.transport=asked`.

    Args:
        policy: GPUs of the policy's ranks.
        rollout: GPUs of the rollout engines.
        takes_turns: the policy is off the device while an engine is on it.

    Raises:
        UserError: what was asked for cannot work here; says why.
    """
    if asked == "object_store":
        return Choice(asked, "as train.transport says")
    lacks: dict[Transport, str] = {
        each: _lacking(each, reach, policy, rollout, takes_turns) for each in DIRECT
    }
    if asked != "auto":
        if lacks[asked]:
            raise UserError(
                f"train.transport={asked}: {lacks[asked]}; train.transport=auto takes what works"
            )
        return Choice(asked, "as train.transport says")
    for transport in DIRECT:
        if not lacks[transport]:
            why = f"vLLM {reach.vllm} has it, and the placement allows it"
            return Choice(transport, why, falls_back=True)
    reasons = dict.fromkeys(lacks.values())
    return Choice("object_store", "; ".join(reasons))


def _lacking(
    transport: Transport, reach: Reach, policy: Set[Gpu], rollout: Set[Gpu], takes_turns: bool
) -> str:
    """Why it cannot be used; "" if it can."""
    if not reach.cuda or not rollout:
        return "there is no GPU"
    if transport not in reach.backends:
        return f"vLLM {reach.vllm} has no weight-transfer engine {transport}"
    if transport == "ipc":
        if not rollout <= policy:
            return "CUDA IPC needs a rank of the policy on every GPU of an engine"
        if takes_turns:
            return "CUDA IPC needs policy and engine on the GPU at once, train.time_slice has one"
    elif rollout & policy:
        return "NCCL needs a GPU for each side, and policy and engine share one"
    return ""
