"""The faults that the suite injects, as data: whom they strike, when, how, and how the run ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

How = Literal["kill", "freeze", "pause", "judge", "corrupt", "disk", "node"]
"""SIGKILL; SIGSTOP; SIGSTOP and SIGCONT after a moment; a bad judge function; bytes changed where
they wait to be fetched; a full disk; a node whose raylet is killed or whose network is cut."""


@dataclass(frozen=True)
class Fault:
    """One fault, and what has to come of it."""

    role: str
    phase: str
    how: How
    doing: str = ""
    """Strike when the process's last note starts with this; empty: as soon as the phase begins."""
    round: int = 2
    method: str = "dpo"
    ends: Literal["finished", "stopped"] = "finished"
    message: str = ""
    """A regular expression that the error must match."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the run."""
    detail: str = ""
    """Tells two faults apart, and says what `judge`, `corrupt` or `disk` do."""

    @property
    def id(self) -> str:
        """Its name in tests and in the table."""
        return "-".join(
            part for part in (self.how, self.role, self.phase, self.method, self.detail) if part
        )


def kills() -> list[Fault]:
    """kill -9 of every role, while it works and while others do."""
    busy = [
        Fault("rollout", "generate", "kill", "generate: read"),
        Fault("rollout", "sync", "kill", "update_weights"),
        Fault("rollout", "parity", "kill", "generate: read"),
        Fault("rollout", "evaluate", "kill", "generate: read"),
        Fault("judge", "judge", "kill", "judge: received"),
        Fault("judge", "judge", "kill", "judge: received", method="ppo"),
        Fault("reference", "logprobs", "kill", "score_rows: received"),
        Fault("reference", "logprobs", "kill", "score_rows: received", method="ppo"),
        Fault("rollout", "generate", "kill", "generate: read", method="nsft"),
    ]
    idle = [
        Fault("rollout", phase, "kill", detail="idle") for phase in ("judge", "train", "logprobs")
    ]
    idle += [
        Fault("judge", phase, "kill", detail="idle") for phase in ("generate", "train", "sync")
    ]
    idle += [Fault("reference", phase, "kill", detail="idle") for phase in ("generate", "train")]
    idle += [Fault("reference", "generate", "kill", method="rpo", detail="idle")]
    often = Fault(
        "judge",
        "judge",
        "judge",
        ends="stopped",
        message=r"judge \(rank 0, pid \d+ on .*\) ended unexpectedly in judge",
        settings={"judge": "tests.faults.judge_functions:always_dies"},
        detail="dies at every answer",
        round=1,
    )
    return [*busy, *idle, often]


def trainers() -> list[Fault]:
    """kill -9 of a trainer: the run goes back to its last checkpoint, or says that it has none."""
    message = (
        r"policy \(rank 0, pid \d+ on .*\) ended unexpectedly in .* There is no checkpoint to go "
        r"back to; set checkpoint\.every=1"
    )
    return [
        Fault("policy", "logprobs", "kill", method="ppo"),
        Fault("policy", "train", "kill", "train:"),
        Fault("policy", "train", "kill", "train:", detail="before a checkpoint", round=1),
        Fault("policy", "sync", "kill"),
        Fault("policy", "parity", "kill"),
        Fault("policy", "checkpoint", "kill"),
        Fault("policy", "generate", "kill", detail="idle"),
        Fault("critic", "train", "kill", "train:", method="ppo"),
        Fault("critic", "logprobs", "kill", method="ppo"),
        Fault("policy", "train", "kill", "train:", method="nsft"),
        Fault(
            "policy",
            "train",
            "kill",
            "train:",
            ends="stopped",
            message=message,
            settings={"checkpoint": {"every": 0}},
            detail="without checkpoints",
        ),
    ]


def freezes() -> list[Fault]:
    """SIGSTOP: past the limit of the call the run ends and says who did not answer."""

    def late(role: str, phase: str, doing: str, key: str, **more: Any) -> Fault:
        message = (
            rf"within deadlines\.{key}=15 s: {role} \(rank 0, node [\d.]+\) is stopped, "
            rf"last finished: .*Stacks: .*Raise deadlines\.{key}"
        )
        return Fault(
            role,
            phase,
            "freeze",
            doing,
            ends="stopped",
            message=message,
            settings={"deadlines": {key: 15}},
            **more,
        )

    return [
        late("rollout", "generate", "generate: read", "generate"),
        late("rollout", "sync", "update_weights", "sync"),
        late("judge", "judge", "judge: received", "judge"),
        late("reference", "logprobs", "score_rows: received", "logprobs"),
        late("policy", "train", "train:", "train"),
        late("policy", "logprobs", "", "logprobs", method="ppo"),
        late("critic", "train", "train:", "train", method="ppo"),
        Fault("judge", "judge", "pause", "judge: received"),
        Fault("rollout", "generate", "pause", "generate: read"),
        Fault("policy", "train", "pause", "train:"),
    ]


def judges() -> list[Fault]:
    """What a user's function may do."""

    def bad(function: str, **more: Any) -> Fault:
        settings = {"judge": f"tests.faults.judge_functions:{function}"}
        settings |= more.pop("settings", {})
        detail = function.replace("_", " ")
        return Fault("judge", "judge", "judge", settings=settings, detail=detail, round=1, **more)

    lenient = {"data": {"max_dropped_share": 0.6}}
    stopped: dict[str, Any] = {"ends": "stopped"}
    return [
        bad(
            "hangs",
            **stopped,
            settings={"deadlines": {"judge": 15}},
            message=r"deadlines\.judge=15 s: judge \(rank 0, node [\d.]+\) is waiting",
        ),
        bad("spins", **stopped, settings={"deadlines": {"judge": 15}}, message=r"is running"),
        bad("often_raises", settings=lenient),
        bad("raises", **stopped, message=r"raised LookupError: no such color"),
        bad("often_nan", settings=lenient),
        bad("returns_nan", **stopped, message=r"returned nan|not finite"),
        bad("returns_infinity", **stopped, message=r"inf"),
        bad("returns_text", **stopped, message=r"rollouts failed"),
        bad("returns_nothing", **stopped, message=r"rollouts failed"),
        bad("exits", **stopped, message=r"rollouts failed|ended unexpectedly|SystemExit"),
        bad("dies_once"),
        bad("crashes_once"),
    ]


def transit() -> list[Fault]:
    """Weights that arrive as other bytes than they were sent with."""
    every = {"train": {"checksum_every": 1}}
    return [
        Fault("rollout", "sync", "corrupt", settings=every, detail="once"),
        Fault(
            "rollout",
            "sync",
            "corrupt",
            settings=every,
            detail="every time",
            ends="stopped",
            message=r"the bucket that starts with .* was corrupted in transit",
        ),
        Fault(
            "rollout",
            "sync",
            "corrupt",
            settings={"train": {"checksum_every": 100}},
            detail="without a checksum",
            ends="stopped",
            message=r"rollout and trainer log-probabilities differ by",
        ),
        Fault("reference", "refresh", "corrupt", settings=every, method="rpo", detail="once"),
    ]


def disks() -> list[Fault]:
    """No space where the run writes."""
    full: dict[str, Any] = {"ends": "stopped", "message": r"No space left on device"}
    return [Fault("driver", "record", "disk", detail="full", round=1, **full)]


CATALOGUE = [*kills(), *trainers(), *freezes(), *judges(), *transit(), *disks()]


def nodes() -> list[Fault]:
    """A node that is lost, with the processes on it (`tests/faults/two_nodes.py`)."""
    moments = (("rollout", "generate"), ("judge", "judge"), ("reference", "logprobs"))
    return [
        Fault(role, phase, "node", detail=what)
        for what in ("raylet killed", "network cut")
        for role, phase in moments
    ]


ALL = [*CATALOGUE, *nodes()]
"""With those that need a cluster of their own."""
