"""The Ray session: actors by role, started once and reused by every run in the process.

Actors are plain classes of `actors/`; only here do they become Ray actors. A role that a method
does not declare is unloaded, so that what memory reports is what the method needs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from dataclasses import replace as changed
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
import torch

from actors.engine import EngineSpec
from actors.reference import ReferenceActor
from actors.reward import JudgeActor
from actors.rollout import RolloutActor
from actors.text import TextActor
from actors.train import TrainActor
from actors.train_spec import TrainSpec
from actors.transports import Choice
from cluster.attach import attach
from cluster.console import Console
from cluster.deadlines import DeadlinesConfig, Limit
from cluster.group import TrainGroup
from cluster.offline import OFFLINE, ON_LOOPBACK
from cluster.placement import ROLES, Plan, Request
from cluster.placement_config import Demand
from cluster.placement_ray import Reservation, reserve
from cluster.placement_text import lines
from cluster.process import Asked, Process, write_whole
from cluster.recipe import Call, Recipe
from cluster.served import ServedGroup
from cluster.traffic import Traffic
from cluster.transport import choose_transport
from cluster.wait import ProcessLostError, Wait
from rewards.base import Judge
from trainers.roles import Role


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

    def go_on(self, spans: Sequence[tuple[str, float, float]]) -> None:
        """Continue an earlier clock: its spans, and time from its end on."""
        self.spans = list(spans)
        self.start = time.perf_counter() - max((end for _, _, end in spans), default=0.0)

    def seconds(self) -> dict[str, float]:
        """Seconds by phase, summed over its spans."""
        totals: dict[str, float] = {}
        for name, begun, ended in self.spans:
            totals[name] = totals.get(name, 0.0) + ended - begun
        return totals


class Session:
    """Starts Ray and the actors, on first use of each role.

    What is in the `demand` is reserved and printed at the start; a session of a verb that trains
    nothing has none, and its roles share one GPU.
    """

    def __init__(
        self,
        *,
        num_threads: int | None = None,
        console: Console,
        num_ranks: int = 1,
        demand: Demand | None = None,
        deadlines: DeadlinesConfig | None = None,
    ):
        self.id = uuid4().hex[:8]
        self.wait = Wait(deadlines or DeadlinesConfig(), Path())
        self.console = console
        self.num_threads = num_threads or max(1, len(os.sched_getaffinity(0)))
        self._demand = demand or _together(num_ranks)
        self._announced = demand is not None
        self._reservation: Reservation | None = None
        self._traffic: Traffic | None = None
        self._groups: dict[str, TrainGroup] = {}
        self._tenants: dict[str, TrainGroup] = {}
        self._connected: set[str] = set()
        self._single: dict[str, ServedGroup] = {}
        self.transport: Choice | None = None
        """How weights get to the rollout engines; None before one was loaded."""
        self.not_direct = ""
        """Why `train.transport=auto` takes the object store here whatever there is; "" if nothing
        says so."""
        self.direct_worked = False
        """Whether a sync from device to device came to its end."""
        self.restarts: list[str] = []
        """Roles of the processes that were brought back."""

    @property
    def console(self) -> Console:
        """What the run shows; its log's folder gets the stacks of processes that hang."""
        return self._console

    @console.setter
    def console(self, console: Console) -> None:
        self._console = console
        self.wait.folder = console.folder

    def __enter__(self) -> Session:
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            attach(self._environment())
        if self._announced:
            try:
                self.announce()
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._owns_ray:
            ray.shutdown()
        elif self._reservation is not None:
            self._reservation.release()

    @property
    def reservation(self) -> Reservation:
        """The GPUs that the session holds; asked for at first use."""
        if self._reservation is None:
            self._reservation = reserve(
                self._demand.requests,
                self._demand.colocate,
                wait_seconds=self._demand.wait_seconds,
                say=self.console.line,
            )
        return self._reservation

    @property
    def traffic(self) -> Traffic:
        """Counts what passes through this process, from its first use on."""
        if self._traffic is None:
            self._traffic = Traffic()
        return self._traffic

    @property
    def plan(self) -> Plan:
        """The map role -> rank -> node -> GPU."""
        return self.reservation.plan

    def announce(self) -> None:
        """Print the map."""
        for line in lines(self.plan, self.reservation.ids):
            self.console.line(f"placement: {line}")

    def shares(self, role: str) -> bool:
        """Whether another role's process may be on a device of this role."""
        return self.plan.shares(role)

    def _environment(self) -> dict[str, str]:
        return {
            **OFFLINE,
            **({} if "RAY_ADDRESS" in os.environ else ON_LOOPBACK),
            "OMP_NUM_THREADS": str(self.num_threads),
            "KMP_BLOCKTIME": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            # Without a GPU vLLM compiles a trifle for seconds at the first request.
            **({"TORCH_COMPILE_DISABLE": "1"} if _on_cpu() else {}),
            "TOKENIZERS_PARALLELISM": "false",
        }

    def _start(
        self, actor: type, role: str, seat: int = 0, num_threads: int | None = None, **kwargs: Any
    ) -> Any:
        return (
            ray.remote(actor)
            .options(**self.reservation.options(role, seat))
            .remote(num_threads=num_threads or self.num_threads, **kwargs)
        )

    def prestart(self, trained: Sequence[Role], single: Sequence[str]) -> None:
        """Start processes and their slow imports in the background; nothing waits for them."""
        for role in trained:
            for actor in self._create_trainer(role).actors:
                actor.warm_up.remote()
        for name in single:
            for handle in self.handles(name):
                handle.warm_up.remote()

    def _create_trainer(self, role: Role) -> TrainGroup:
        if role not in self._groups:
            number = self.plan.num_ranks(role)
            self._groups[role] = self.ranks(role, number, self.num_threads)
        return self._groups[role]

    def forget(self, role: str) -> None:
        """End a trained role's processes, what lives in them too; the next use starts new ones."""
        self._groups.pop(role).end()
        self._connected.discard(role)
        self._tenants.clear()

    def ranks(
        self, role: str, number: int, num_threads: int, kind: type[TrainActor] = TrainActor
    ) -> TrainGroup:
        """New processes for one trained copy, not connected yet."""

        def start(rank: int) -> Any:
            return self._start(kind, role, rank, num_threads, rank=rank, world_size=number)

        return TrainGroup(
            [Process(role, rank, partial(start, rank), self.id) for rank in range(number)],
            self.wait,
        )

    def trainer(self, role: Role) -> TrainGroup:
        """The DeepSpeed ranks of a trained role, connected to each other.

        Raises:
            ProcessLostError: one of them died since, and the copy with it.
        """
        group = self._tenants.get(role) or self._create_trainer(role)
        for process in group.processes:
            if process.lost:
                raise ProcessLostError(process, "the meantime")
        if role in self._tenants:
            return group
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
        number, threads = (1, self.num_threads) if on_gpu else (self.num_threads, 1)
        group = self.ranks("builder", number, threads)
        try:
            group.connect()
            yield group
        finally:
            group.end()

    def actor(self, role: str) -> Any:
        """The Ray handle of `judge`, `reference`, `writer`, or of the first rollout engine."""
        return self.handles(role)[0]

    def handles(self, role: str) -> list[Any]:
        """Ray handles of a role's processes, all of them alive."""
        return self.served(role).handles()

    def served(self, role: str) -> ServedGroup:
        """The processes of `rollout`, `judge`, `reference` or `writer`."""
        classes = {
            "rollout": RolloutActor,
            "judge": JudgeActor,
            "reference": ReferenceActor,
            "writer": TextActor,
        }
        if role not in self._single:
            number = max(1, sum(seat.role == role for seat in self.plan.seats))
            threads = max(1, self.num_threads // number)

            def start(rank: int) -> Any:
                return self._start(classes[role], role, rank, threads)

            self._single[role] = ServedGroup(
                [Process(role, rank, partial(start, rank), self.id) for rank in range(number)],
                self.wait,
                may_replace=lambda process: process not in self._ranks_of_trainers(),
                replaced=self._note_restart,
                warn=lambda text: self.console.warn(text),
            )
        return self._single[role]

    def ask(self, role: str, name: str, *args: Any, limit: Limit, **kwargs: Any) -> Any:
        """The result of one call to `served(role)`; see `ServedGroup.ask`."""
        return self.served(role).ask(name, *args, limit=limit, **kwargs)

    def _ranks_of_trainers(self) -> list[Process]:
        return [process for group in self._groups.values() for process in group.processes]

    def _note_restart(self, process: Process) -> None:
        self.restarts.append(process.role)
        self.write_processes()

    def has(self, role: str) -> bool:
        """Whether the role's process has been started."""
        return role in self._groups or role in self._single

    def load_trainer(self, role: Role, spec: TrainSpec) -> None:
        """Load `spec` on every rank of the role; what shared its base before is gone."""
        self._tenants.clear()
        if role in self._groups and self._groups[role].lost:
            self.forget(role)
        self.trainer(role).ask("load", spec, limit="load")

    def load_tenant(self, role: Role, base: Role, spec: TrainSpec) -> None:
        """Load `spec` for `role` into the processes of `base`, on its frozen weights."""
        self.unload(role)
        group = self.trainer(base)
        group.ask("load_tenant", spec, limit="load")
        self._tenants[role] = TrainGroup(group.processes, self.wait, tenant=True)

    def load_rollout(self, spec: EngineSpec) -> None:
        """Start the rollout engines; they only sleep where they share a GPU."""
        spec = changed(spec, sleep=spec.sleep and self.shares("rollout"))
        choice = choose_transport(
            spec,
            self.plan,
            lambda: self.ask("rollout", "reach", limit="load"),
            not_direct=self.not_direct,
        )
        if choice.why and choice != self.transport:
            self.console.line(f"weights: {choice}")
        self.transport = choice
        self.ask("rollout", "load", changed(spec, transport=choice.transport), limit="load")

    def load_judge(self, make: Callable[[], Judge]) -> str:
        """Make the judge in its process; returns its name."""
        name: str = self.ask("judge", "load", make, limit="load")
        return name

    def park(self, role: str) -> int:
        """Move a role's copy to host memory. Returns the bytes moved, all ranks together."""
        return self._move(role, "park")

    def wake(self, role: str) -> int:
        """Bring a role's copy back to the device, where it is parked. Returns the bytes moved."""
        return self._move(role, "wake")

    def give_back(self, role: str) -> int:
        """What a role's allocators keep beyond their tensors goes back to the device. Returns the
        bytes, all ranks together.
        """
        return self._move(role, "give_back")

    def _move(self, role: str, name: str) -> int:
        if role in self._groups:
            return sum(self._groups[role].ask(name, limit="load"))
        served = self.served(role)
        if name in ("park", "sleep", "give_back") and all(
            process.lost for process in served.processes
        ):
            served.recipe.note(Call(name))  # where the next one is to be
            return 0
        return int(self.ask(role, name, limit="load"))

    def sleep(self, role: str) -> int:
        """Send the engine of `rollout` or `judge` off the device. Returns the bytes moved."""
        return self._move(role, "sleep")

    def wake_up(self, role: str) -> int:
        """Bring that engine back. Returns the bytes moved."""
        return self._move(role, "wake_up")

    def processes(self) -> list[Process]:
        """All processes that were started."""
        served = [process for group in self._single.values() for process in group.processes]
        return [*self._ranks_of_trainers(), *served]

    def write_processes(self) -> None:
        """`processes.json`: role, rank, pid and node of every process, and where its notes are."""
        found = [(process, process.place()) for process in self.processes()]
        rows = [
            {"role": process.role, "rank": process.rank, **asdict(place)}
            for process, place in found
            if place is not None
        ]
        write_whole(self.console.folder / "processes.json", json.dumps(rows, indent=1) + "\n")

    def ask_readings(self, phase: str) -> list[Asked]:
        """Ask every started process for its memory in the phase that ends now. Nothing waits, as a
        process answers before it does what it is asked later.
        """
        return [process.send("end_phase", phase) for process in self.processes()]

    def answered(self, asked: Sequence[Asked]) -> bool:
        """Whether all these calls have their results, or errors. Nothing waits."""
        return self.wait.answered(asked)

    def fetch_readings(self, asked: Sequence[Asked]) -> dict[str, Any]:
        """What they answered, by role and rank; who died since has no reading."""
        found = {}
        for each in asked:
            try:
                found[each.process.name] = self.wait([each], "answer")[0]
            except ProcessLostError:  # noted: whoever needs the process next brings it back
                continue
        return found

    def object_store_bytes(self) -> int:
        """Bytes that Ray's object stores hold now, all nodes together."""
        # No public call answers without a dashboard.
        from grpc import RpcError
        from ray._private.internal_api import node_stats

        sizes = []
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
            try:
                stats = node_stats(address, port, include_memory_info=False)
            except RpcError:  # it has just died, and its objects with it
                continue
            sizes.append(stats.store_stats.object_store_bytes_used)
        return int(sum(sizes))

    def unload(self, role: str) -> None:
        """Free a role's copy, if it is held; its process stays for the next run."""
        if role in self._groups and not self._groups[role].lost:
            self._groups[role].ask("unload", limit="load")
        if role in self._single:
            self._single[role].recipe = Recipe()
            self.ask(role, "unload", limit="load")


def _together(num_ranks: int) -> Demand:
    """All roles on the GPUs of the trained copies."""
    requests = tuple(
        Request(role, num_ranks if role in ("policy", "critic") else 1) for role in ROLES
    )
    return Demand(requests, (ROLES,))


def _on_cpu() -> bool:
    """Whether the actors compute on a CPU; a cluster's driver may be on a machine without a GPU."""
    if "RAY_ADDRESS" in os.environ:
        return torch.version.cuda is None
    return not torch.cuda.is_available()
