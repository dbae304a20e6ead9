"""The Ray session: actors by role, started once and reused by every run in the process.

Actors are plain classes of `actors/`; only here do they become Ray actors. A role that a method
does not declare is unloaded, so that what memory reports is what the method needs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import numpy as np
import ray
import torch

from actors.engine import EngineSpec
from actors.reference import ReferenceActor
from actors.reward import JudgeActor
from actors.rollout import RolloutActor
from actors.text import TextActor
from actors.train import TrainActor
from actors.train_spec import TrainSpec
from cluster.attach import attach
from cluster.console import Console
from cluster.offline import OFFLINE, ON_LOOPBACK
from rewards.base import Judge
from trainers.batch import Row
from trainers.roles import Role

NUM_ROLES = 5


@dataclass(slots=True)
class Clock:
    """Seconds by phase, and the spans for the timeline."""

    start: float = field(default_factory=time.perf_counter)
    spans: list[tuple[str, float, float]] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; phases may come again."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.spans.append((name, begun - self.start, time.perf_counter() - self.start))

    def seconds(self) -> dict[str, float]:
        """Seconds by phase, summed over its spans."""
        totals: dict[str, float] = {}
        for name, begun, ended in self.spans:
            totals[name] = totals.get(name, 0.0) + ended - begun
        return totals


class TrainGroup:
    """The ranks of one trained copy; a call goes to all of them (SPMD).

    With `tenant` it is the second copy in the processes of another one.
    """

    def __init__(self, actors: list[Any], *, tenant: bool = False):
        self.actors, self.is_tenant = actors, tenant

    def call(self, name: str, *args: Any, **kwargs: Any) -> list[Any]:
        """References to every rank's result; the first is rank 0's."""
        return [self._call(actor, name, *args, **kwargs) for actor in self.actors]

    def _call(self, actor: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        if self.is_tenant:
            return actor.tenant.remote(name, *args, **kwargs)
        return getattr(actor, name).remote(*args, **kwargs)

    def connect(self) -> None:
        """Join the ranks to one DeepSpeed group, rank 0's host being the rendezvous."""
        host, port = ray.get(self.actors[0].address.remote())
        ray.get(self.call("connect", host, port))

    def score_rows(self, rows: Sequence[Row], *, adapters: bool = True) -> list[np.ndarray]:
        """Values of the rows' target tokens."""
        return self._deal("score_rows", rows, adapters=adapters)

    def greedy_rows(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """The policy's likeliest tokens at the rows' target places."""
        return self._deal("greedy_rows", rows)

    def _deal(self, name: str, rows: Sequence[Row], **kwargs: Any) -> list[np.ndarray]:
        """Rows are dealt to ranks in turn; equal numbers, since ZeRO-3 ranks move in step."""
        world = len(self.actors)
        padded = [*rows, *islice(cycle(rows), -len(rows) % world)]
        parts = ray.get(
            [
                self._call(actor, name, padded[rank::world], **kwargs)
                for rank, actor in enumerate(self.actors)
            ]
        )
        return [parts[index % world][index // world] for index in range(len(rows))]


class Session:
    """Starts Ray and the actors, on first use of each role."""

    def __init__(self, *, num_threads: int | None = None, console: Console, num_ranks: int = 1):
        self.console = console
        self.num_threads = num_threads or max(1, len(os.sched_getaffinity(0)))
        self.num_ranks = num_ranks
        self._groups: dict[str, TrainGroup] = {}
        self._tenants: dict[str, TrainGroup] = {}
        self._connected: set[str] = set()
        self._single: dict[str, Any] = {}

    def __enter__(self) -> Session:
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            attach(self._environment())
        return self

    def __exit__(self, *exception: object) -> None:
        if self._owns_ray:
            ray.shutdown()

    def _environment(self) -> dict[str, str]:
        return {
            **OFFLINE,
            **({} if "RAY_ADDRESS" in os.environ else ON_LOOPBACK),
            "OMP_NUM_THREADS": str(self.num_threads),
            "KMP_BLOCKTIME": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            # Without a GPU vLLM compiles a trifle for seconds at the first request.
            **({} if torch.cuda.is_available() else {"TORCH_COMPILE_DISABLE": "1"}),
            "TOKENIZERS_PARALLELISM": "false",
        }

    def _options(self) -> dict[str, Any]:
        """On a GPU machine the roles share the GPUs evenly; on a CPU nothing is reserved."""
        gpus = ray.cluster_resources().get("GPU", 0.0)
        share = min(1.0, gpus / (NUM_ROLES + 2 * (self.num_ranks - 1))) if gpus else 0.0
        return {"num_cpus": 0, "num_gpus": share}

    def _start(self, actor: type, num_threads: int | None = None, **kwargs: Any) -> Any:
        return (
            ray.remote(actor)
            .options(**self._options())
            .remote(num_threads=num_threads or self.num_threads, **kwargs)
        )

    def prestart(self, trained: Sequence[Role], single: Sequence[str]) -> None:
        """Start processes and their slow imports in the background; nothing waits for them."""
        for role in trained:
            for actor in self._create_trainer(role).actors:
                actor.warm_up.remote()
        for name in single:
            self.actor(name).warm_up.remote()

    def _create_trainer(self, role: Role) -> TrainGroup:
        if role not in self._groups:
            self._groups[role] = self._ranks(self.num_ranks, self.num_threads)
        return self._groups[role]

    def _ranks(self, number: int, num_threads: int) -> TrainGroup:
        return TrainGroup(
            [
                self._start(TrainActor, num_threads, rank=rank, world_size=number)
                for rank in range(number)
            ]
        )

    def trainer(self, role: Role) -> TrainGroup:
        """The DeepSpeed ranks of a trained role, connected to each other."""
        if role in self._tenants:
            return self._tenants[role]
        group = self._create_trainer(role)
        if role not in self._connected:
            group.connect()
            self._connected.add(role)
        return group

    @contextmanager
    def builder(self) -> Iterator[TrainGroup]:
        """Ranks for building models outside a run, ended after use.

        On a CPU one rank per core with one thread each: for small matrices that is nearly twice as
        fast as one rank with all the threads.
        """
        on_gpu = torch.cuda.is_available()
        group = self._ranks(1 if on_gpu else self.num_threads, self.num_threads if on_gpu else 1)
        try:
            group.connect()
            yield group
        finally:
            for actor in group.actors:
                ray.kill(actor)

    def actor(self, role: str) -> Any:
        """The single actor of `rollout`, `judge`, `reference` or `writer`."""
        classes = {
            "rollout": RolloutActor,
            "judge": JudgeActor,
            "reference": ReferenceActor,
            "writer": TextActor,
        }
        if role not in self._single:
            self._single[role] = self._start(classes[role])
        return self._single[role]

    def has(self, role: str) -> bool:
        """Whether the role's process has been started."""
        return role in self._groups or role in self._single

    def load_trainer(self, role: Role, spec: TrainSpec) -> None:
        """Load `spec` on every rank of the role; what shared its base before is gone."""
        self._tenants.clear()
        ray.get(self.trainer(role).call("load", spec))

    def load_tenant(self, role: Role, base: Role, spec: TrainSpec) -> None:
        """Load `spec` for `role` into the processes of `base`, on its frozen weights."""
        self.unload(role)
        ray.get(self.trainer(base).call("load_tenant", spec))
        self._tenants[role] = TrainGroup(self.trainer(base).actors, tenant=True)

    def load_rollout(self, spec: EngineSpec) -> None:
        """Start the rollout engine."""
        ray.get(self.actor("rollout").load.remote(spec))

    def load_judge(self, make: Callable[[], Judge]) -> str:
        """Make the judge in its process; returns its name."""
        name: str = ray.get(self.actor("judge").load.remote(make))
        return name

    def park(self, role: str) -> int:
        """Move a role's copy to host memory. Returns the bytes moved, all ranks together."""
        return sum(ray.get([actor.park.remote() for actor in self._actors(role)]))

    def wake(self, role: str) -> int:
        """Bring a role's copy back to the device, where it is parked. Returns the bytes moved."""
        return sum(ray.get([actor.wake.remote() for actor in self._actors(role)]))

    def sleep(self, role: str) -> int:
        """Send the engine of `rollout` or `judge` off the device. Returns the bytes moved."""
        return int(ray.get(self.actor(role).sleep.remote()))

    def wake_up(self, role: str) -> int:
        """Bring that engine back. Returns the bytes moved."""
        return int(ray.get(self.actor(role).wake_up.remote()))

    def _actors(self, role: str) -> list[Any]:
        return self._groups[role].actors if role in self._groups else [self.actor(role)]

    def ask_readings(self, phase: str) -> dict[str, Any]:
        """Ask every started process for its memory in the phase that ends now. References by role
        and rank; nothing waits, as a process answers before it does what it is asked later.
        """
        processes = {
            f"{role}/{rank}": actor
            for role, group in self._groups.items()
            for rank, actor in enumerate(group.actors)
        } | self._single
        return {name: actor.end_phase.remote(phase) for name, actor in processes.items()}

    def object_store_bytes(self) -> int:
        """Bytes that Ray's object stores hold now, all nodes together."""
        # No public call answers without a dashboard.
        from ray._private.internal_api import node_stats

        sizes = [
            node_stats(
                node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
            ).store_stats.object_store_bytes_used
            for node in ray.nodes()
            if node["Alive"]
        ]
        return int(sum(sizes))

    def unload(self, role: str) -> None:
        """Free a role's copy, if it is held; its process stays for the next run."""
        if role in self._groups:
            ray.get(self._groups[role].call("unload"))
        if role in self._single:
            ray.get(self._single[role].unload.remote())
