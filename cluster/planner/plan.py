"""Will it fit? Bytes by copy, kind and phase for each method, before anything is rented.

Placement assumed: every GPU holds one rank of each trained copy; a frozen copy and an engine are
whole on one GPU each, the least loaded one, since that is how the actors hold them. What a phase
needs at its peak is counted on the fullest GPU.

Layers: weights, gradients, optimiser states, masters, communication buffers and KV cache are
*predicted* from parameter shapes; activations and logits of the language path are *traced* on fake
tensors; the vision tower's are an analytic term (predicted); `runtime` is an assumption.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.planner.architectures import Architecture
from cluster.planner.copy_plan import CopyPlanner
from cluster.planner.gpus import Gpu
from cluster.planner.settings import Settings
from trainers.ledger import PHASES, Copies, Kinds
from trainers.method import Method
from trainers.roles import reference_source, resident_in_scoring, resident_in_training

RUNTIME_BYTES = 600 * 2**20
"""Assumed for each process on a GPU: CUDA context, kernels, cuBLAS workspace."""
MOST_NODES = 64
BUCKET_BYTES = 256 * 2**20
"""`train.bucket_mib` of a weight sync."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodPlan:
    """One method on one kind of GPU."""

    method: str
    copies: tuple[str, ...]
    """Declared for the training step: 4, 2 or 1."""
    num_gpus: int
    phases: dict[str, Copies]
    """Phase -> copy -> kind -> bytes on the fullest GPU."""
    host_bytes: int
    """Parked copies and offloaded optimiser states, all ranks of the fullest GPU."""
    disk_bytes: int
    """Optimiser states on a disk, of the same ranks."""
    fits: bool
    min_gpus: int | None
    """Smallest number of GPUs that fits, beyond one node in whole nodes; None if 64 nodes do not
    hold it."""
    advice: tuple[str, ...] = ()

    @property
    def binding_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: total(self.phases[phase]))

    @property
    def peak_bytes_per_gpu(self) -> int:
        """Of the fullest GPU in the binding phase."""
        return total(self.phases[self.binding_phase])

    @property
    def bytes_by_copy(self) -> Copies:
        """Copy -> kind -> bytes of the fullest GPU in the binding phase."""
        return self.phases[self.binding_phase]


def total(copies: Mapping[str, Mapping[str, int]]) -> int:
    """Sum over copies and kinds."""
    return sum(sum(kinds.values()) for kinds in copies.values())


@dataclass(slots=True)
class Planner:
    """Plans methods for one architecture and one card; traces are taken once each."""

    architecture: Architecture
    gpu: Gpu
    gpus_per_node: int = 8
    _copies: CopyPlanner = field(init=False)

    def __post_init__(self) -> None:
        """One planner of copies, so that each trace is taken once."""
        self._copies = CopyPlanner(self.architecture)

    def plan(self, method: Method, settings: Settings, num_gpus: int | None = None) -> MethodPlan:
        """The method on `num_gpus`, by default on the smallest number that fits (or one)."""
        smallest = self._smallest(method, settings)
        number = num_gpus or smallest or 1
        phases, host, disk = self._phases(method, settings, number)
        fits = max(total(copies) for copies in phases.values()) <= self.gpu.memory_bytes
        return MethodPlan(
            method=method.name,
            copies=tuple(copy.role for copy in method.copies),
            num_gpus=number,
            phases=phases,
            host_bytes=host,
            disk_bytes=disk,
            fits=fits,
            min_gpus=smallest,
            advice=() if fits else self._advice(method, settings, number),
        )

    def _smallest(self, method: Method, settings: Settings) -> int | None:
        for number in self._numbers():
            phases, *_ = self._phases(method, settings, number)
            if max(total(copies) for copies in phases.values()) <= self.gpu.memory_bytes:
                return number
        return None

    def _numbers(self) -> Iterable[int]:
        node = self.gpus_per_node
        return (*range(1, node + 1), *(node * nodes for nodes in range(2, MOST_NODES + 1)))

    def _advice(self, method: Method, settings: Settings, number: int) -> tuple[str, ...]:
        """Changes that make it fit on `number` GPUs, of those that a run can make."""
        changes: list[tuple[str, dict[str, Any]]] = [
            ("--zero 3", {"zero_stage": 3}),
            ("no --no-checkpointing", {"gradient_checkpointing": True}),
            ("--micro-batch 1", {"micro_batch_size": 1}),
            ("--reference cached", {"reference": "cached"}),
            ("--time-slice", {"time_slice": True, "optimizer_device": "device"}),
            ("--lora 64", {"lora_rank": 64}),
            ("--lora 64 --time-slice", {"lora_rank": 64, "time_slice": True}),
        ]
        if settings.critic == "shared_base":  # one base cannot be apart
            changes = [item for item in changes if not {"zero_stage", "time_slice"} & {*item[1]}]
        elif "critic" in method.trained and not settings.time_slice:
            rank, stage = settings.lora_rank or 64, min(settings.zero_stage, 2)
            changes.append(
                (
                    f"--lora {rank} --zero {stage} --critic shared_base",
                    {"lora_rank": rank, "zero_stage": stage, "critic": "shared_base"},
                )
            )
        if settings.zero_stage and not settings.time_slice:  # who owns the optimiser moves it
            changes.append(("--offload optimizer", {"optimizer_device": "cpu"}))
        found = []
        for text, change in changes:
            if settings.freeze and "lora_rank" in change:  # adapters freeze all weights
                text, change = f"no --freeze, {text}", {**change, "freeze": ()}
            changed = replace(settings, **change)
            if changed != settings:
                phases, *_ = self._phases(method, changed, number)
                if max(total(copies) for copies in phases.values()) <= self.gpu.memory_bytes:
                    found.append(text)
        return tuple(found)

    # Phases ------------------------------------------------------------------------------------

    def _phases(
        self, method: Method, settings: Settings, number: int
    ) -> tuple[dict[str, Copies], int, int]:
        held, host, disk = self._held(method, settings, number)
        working = self._working(method, settings, number)
        homes = _homes(held, method.trained, number)
        staying = resident_in_training(method.copies, settings.reference)
        passing = {copy.role for copy in method.copies} - set(staying)
        phases: dict[str, Copies] = {}
        parked = 0
        for phase in PHASES:
            fullest: Copies = {}
            for gpu in range(number):
                here = [copy for copy, home in homes.items() if home in (None, gpu)]
                for active in _moments(phase, working[phase], settings):
                    there = [copy for copy in here if copy in active or copy not in passing]
                    present = _present(phase, active, working[phase])
                    copies = self._moment(there, active, present, held, working[phase], settings)
                    if phase == "sync" and settings.sleep:  # no answer has been asked for yet
                        copies.get("rollout_engine", {}).pop("kv_cache", None)
                    if total(copies) > total(fullest):
                        fullest = copies
                        parked = max(parked, _parked([held[c] for c in there if c not in copies]))
            phases[phase] = fullest
        return phases, host + parked, disk

    def _moment(
        self,
        here: Sequence[str],
        active: Sequence[str],
        present: Sequence[str],
        held: Mapping[str, Kinds],
        working: Mapping[str, Kinds],
        settings: Settings,
    ) -> Copies:
        """What one GPU holds while `active` copies work and `present` ones wait for them there."""
        copies: Copies = {}
        for copy in here:
            engine = copy.endswith("engine")
            leaves = settings.sleep if engine else settings.time_slice
            leaves = leaves or (copy == "reference" and settings.reference == "on_host")
            awake = copy in present or not leaves
            if not awake:
                continue
            kinds = dict(held[copy])
            if copy in active:
                for kind, size in working[copy].items():
                    kinds[kind] = kinds.get(kind, 0) + size
            copies[copy] = kinds
        tenants = int("critic" in here and settings.critic == "shared_base")
        copies["process"] = {"runtime": RUNTIME_BYTES * (len(here) - tenants)}
        return copies

    def _held(
        self, method: Method, settings: Settings, number: int
    ) -> tuple[dict[str, Kinds], int, int]:
        """Copy -> kind -> bytes while it is there (the fullest rank's), and bytes on the host and
        on the disk.
        """
        resident = resident_in_scoring(method.copies, method.refreshed, settings.reference)
        held: dict[str, Kinds] = {}
        host = disk = 0
        for role in resident:
            if role == "reward" and not settings.judge:
                continue
            if role in method.trained:
                own = self._copies.trained(role, settings, number)
                held[role] = own.device
                host += sum(own.host.values())
                disk += own.disk
            else:
                held[role] = self._copies.frozen(role, settings)
        weights = self._copies.frozen("policy", replace(settings, lora_rank=0))
        cache = {"kv_cache": self._kv_cache_bytes(settings)}
        held["rollout_engine"] = {**weights, **cache}
        if settings.judge:
            held["judge_engine"] = {**weights, **cache}
        if settings.judge and "reward" not in resident:
            held["judge"] = self._copies.frozen("reward", settings)
        return held, host, disk

    def _working(
        self, method: Method, settings: Settings, number: int
    ) -> dict[str, dict[str, Kinds]]:
        """Phase -> copy at work -> kind -> bytes that come and go."""
        judge = "reward" if any(c.role == "reward" for c in method.copies) else "judge"
        scoring: dict[str, Kinds] = {}
        for signal in method.signals:
            source = reference_source(method.refreshed, settings.reference)
            own = signal.role != "reference" or source in ("resident_copy", "passing_copy")
            scoring[signal.role if own else "policy"] = self._copies.scoring(
                "critic" if signal.role == "critic" else "policy", settings
            )
        return {
            "generate": {"rollout_engine": self._engine_work(settings)},
            "judge": {
                "judge_engine": self._engine_work(settings),
                judge: self._copies.scoring("policy", settings),
            }
            if settings.judge
            else {},
            "logprobs": scoring,
            "train": {role: self._copies.step(role, settings, number) for role in method.trained},
            "sync": {"policy": {"communication": BUCKET_BYTES}, "rollout_engine": {}},
        }

    # Pieces ------------------------------------------------------------------------------------

    def _kv_cache_bytes(self, settings: Settings) -> int:
        """Of `max_num_seqs` sequences of full length, all layers, if it is not given."""
        if settings.kv_cache_bytes is not None:
            return settings.kv_cache_bytes
        shape = self.architecture
        tokens = settings.text_tokens + settings.response_tokens
        tokens += shape.image_tokens() * settings.images
        each = 2 * shape.num_text_layers * shape.num_key_value_heads * shape.head_dim
        return settings.max_num_seqs * tokens * each * (2 if settings.bf16 else 4)

    def _engine_work(self, settings: Settings) -> Kinds:
        """A prefill of 8,192 tokens (vLLM's default batch), and one step's logits in float32."""
        shape = self.architecture
        width = 4 * shape.text_hidden_size + 3 * shape.text_intermediate_size
        return {
            "activations": 8192 * width * (2 if settings.bf16 else 4),
            "logits": 2 * 4 * settings.max_num_seqs * shape.vocab_size,
        }


def _parked(copies: Iterable[Kinds]) -> int:
    """Host bytes of copies that wait there; a sleeping engine drops its KV cache."""
    return sum(size for kinds in copies for kind, size in kinds.items() if kind != "kv_cache")


def _homes(held: Mapping[str, Kinds], trained: Sequence[str], number: int) -> dict[str, int | None]:
    """Copy -> GPU; None for a trained copy, which has a rank on each."""
    homes: dict[str, int | None] = {copy: None for copy in held if copy in trained}
    loads = [0] * number
    whole = [copy for copy in held if copy not in homes]
    for copy in sorted(whole, key=lambda name: -sum(held[name].values())):
        gpu = loads.index(min(loads))
        homes[copy] = gpu
        loads[gpu] += sum(held[copy].values())
    return homes


def _moments(phase: str, working: Mapping[str, Kinds], settings: Settings) -> list[tuple[str, ...]]:
    """Sets of copies that work at the same time in a phase."""
    in_turn = settings.time_slice or settings.critic == "shared_base"
    together = phase == "sync" or (phase == "train" and not in_turn)
    names = tuple(working)
    return [names] if together or not names else [(name,) for name in names]


def _present(phase: str, active: tuple[str, ...], working: Mapping[str, Kinds]) -> tuple[str, ...]:
    """Copies that are on the device for a moment: the judge's two come and go together."""
    return tuple(working) if phase == "judge" else active
