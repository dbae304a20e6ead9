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
from typing import Any, Literal

from actors.train_spec import REDUCE_BUCKET_SIZE
from cluster.planner.architectures import Architecture
from cluster.planner.copies import CopyTensors, copy_tensors
from cluster.planner.gpus import Gpu
from cluster.planner.static import (
    Sharding,
    backward_bucket_bytes,
    frozen_copy_bytes,
    trained_copy_bytes,
)
from cluster.planner.trace import Workload, trace_step, vision_bytes
from trainers.ledger import PHASES, Copies, Kinds
from trainers.method import Method
from trainers.roles import (
    ReferenceMode,
    reference_source,
    resident_in_scoring,
    resident_in_training,
)

RUNTIME_BYTES = 600 * 2**20
"""Assumed for each process on a GPU: CUDA context, kernels, cuBLAS workspace."""
MOST_NODES = 64
BUCKET_BYTES = 256 * 2**20
"""`train.bucket_mib` of a weight sync."""
LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's `stage3_max_live_parameters`, its default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is planned for; names as in a run's config where it has them."""

    zero_stage: int = 3
    bf16: bool = True
    lora_rank: int = 0
    lora_vision: bool = False
    gradient_checkpointing: bool = True
    reference: ReferenceMode = "own_copy"
    micro_batch_size: int = 2
    """Rows (a preference pair is two)."""
    response_tokens: int = 512
    text_tokens: int = 128
    """Of the prompt, beside the image."""
    images: int = 1
    max_num_seqs: int = 32
    """Responses that the rollout engine and the judge write at once."""
    chunk_size: int = 512
    """Target tokens whose logits exist at once."""
    sleep: bool = False
    """The rollout engine and the judge's leave the GPU while others work."""
    time_slice: bool = False
    """One copy on the GPU at a time, the others in host memory."""
    optimizer_device: Literal["device", "cpu"] = "device"


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
    _traces: dict[Any, Kinds] = field(default_factory=dict)
    _tensors: dict[Any, CopyTensors] = field(default_factory=dict)

    def plan(self, method: Method, settings: Settings, num_gpus: int | None = None) -> MethodPlan:
        """The method on `num_gpus`, by default on the smallest number that fits (or one)."""
        smallest = self._smallest(method, settings)
        number = num_gpus or smallest or 1
        phases, host = self._phases(method, settings, number)
        fits = max(total(copies) for copies in phases.values()) <= self.gpu.memory_bytes
        return MethodPlan(
            method=method.name,
            copies=tuple(copy.role for copy in method.copies),
            num_gpus=number,
            phases=phases,
            host_bytes=host,
            fits=fits,
            min_gpus=smallest,
            advice=() if fits else self._advice(method, settings, number),
        )

    def _smallest(self, method: Method, settings: Settings) -> int | None:
        for number in self._numbers():
            phases, _ = self._phases(method, settings, number)
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
        if settings.zero_stage and not settings.time_slice:  # who owns the optimiser moves it
            changes.append(("--offload optimizer", {"optimizer_device": "cpu"}))
        found = []
        for text, change in changes:
            changed = replace(settings, **change)
            if changed != settings:
                phases, _ = self._phases(method, changed, number)
                if max(total(copies) for copies in phases.values()) <= self.gpu.memory_bytes:
                    found.append(text)
        return tuple(found)

    # Phases ------------------------------------------------------------------------------------

    def _phases(
        self, method: Method, settings: Settings, number: int
    ) -> tuple[dict[str, Copies], int]:
        held, host = self._held(method, settings, number)
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
        return phases, host + parked

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
            awake = copy in present or not (settings.sleep if engine else settings.time_slice)
            if not awake:
                continue
            kinds = dict(held[copy])
            if copy in active:
                for kind, size in working[copy].items():
                    kinds[kind] = kinds.get(kind, 0) + size
            copies[copy] = kinds
        copies["process"] = {"runtime": RUNTIME_BYTES * len(here)}
        return copies

    def _held(
        self, method: Method, settings: Settings, number: int
    ) -> tuple[dict[str, Kinds], int]:
        """Copy -> kind -> bytes while it is there (rank 0's share), and bytes moved to the host."""
        resident = resident_in_scoring(method.copies, method.refreshed, settings.reference)
        held: dict[str, Kinds] = {}
        host = 0
        for role in resident:
            tensors = self._copy(role, settings)
            if role in method.trained:
                sharding = _sharding(settings, number, tensors)
                kinds = trained_copy_bytes(tensors.shapes, tensors.buffer_bytes, sharding)
                gradients = kinds.pop("gradients")  # counted where they exist: in training
                if settings.optimizer_device == "cpu":
                    # DeepSpeed steps where the states are, on gradients that it sent there.
                    host += kinds.pop("optimizer") + kinds.pop("masters") + gradients
                held[role] = kinds
            else:
                held[role] = frozen_copy_bytes(tensors.shapes, tensors.buffer_bytes)
        engine = self._copy("policy", replace(settings, lora_rank=0))
        weights = frozen_copy_bytes(engine.shapes, engine.buffer_bytes)
        cache = {"kv_cache": self._kv_cache_bytes(settings)}
        held["rollout_engine"] = {**weights, **cache}
        held["judge_engine"] = {**weights, **cache}
        if "reward" not in resident:
            reward = self._copy("reward", settings)
            held["judge"] = frozen_copy_bytes(reward.shapes, reward.buffer_bytes)
        return held, host

    def _working(
        self, method: Method, settings: Settings, number: int
    ) -> dict[str, dict[str, Kinds]]:
        """Phase -> copy at work -> kind -> bytes that come and go."""
        judge = "reward" if any(c.role == "reward" for c in method.copies) else "judge"
        scoring: dict[str, Kinds] = {}
        for signal in method.signals:
            source = reference_source(method.refreshed, settings.reference)
            own = signal.role != "reference" or source in ("resident_copy", "passing_copy")
            scoring[signal.role if own else "policy"] = self._trace(
                "critic" if signal.role == "critic" else "policy", settings, train=False
            )
        train: dict[str, Kinds] = {}
        for role in method.trained:
            tensors = self._copy(role, settings)
            sharding = _sharding(settings, number, tensors)
            # All gradients exist from a step's second micro-batch on.
            gradients = trained_copy_bytes(tensors.shapes, 0, sharding)["gradients"]
            train[role] = {
                **self._trace(role, settings, train=True),
                "gradients": 0 if settings.optimizer_device == "cpu" else gradients,
                "communication": backward_bucket_bytes(sharding)
                + _gathered_bytes(tensors, sharding),
            }
        return {
            "generate": {"rollout_engine": self._engine_work(settings)},
            "judge": {
                "judge_engine": self._engine_work(settings),
                judge: self._trace("policy", settings, train=False),
            },
            "logprobs": scoring,
            "train": train,
            "sync": {"policy": {"communication": BUCKET_BYTES}, "rollout_engine": {}},
        }

    # Pieces ------------------------------------------------------------------------------------

    def _copy(self, role: str, settings: Settings) -> CopyTensors:
        key = (role, settings.bf16, settings.lora_rank, settings.lora_vision)
        if key not in self._tensors:
            self._tensors[key] = copy_tensors(
                self.architecture,
                role,
                bf16=settings.bf16,
                lora_rank=settings.lora_rank,
                lora_vision=settings.lora_vision,
            )
        return self._tensors[key]

    def _trace(self, role: str, settings: Settings, *, train: bool) -> Kinds:
        """Activations and logits at the peak of one micro-batch; gradients are counted apart."""
        key = (
            role,
            train,
            settings.bf16,
            settings.gradient_checkpointing and train,
            settings.lora_rank,
            settings.lora_vision,
            settings.micro_batch_size,
            settings.text_tokens,
            settings.response_tokens,
            settings.images,
            settings.chunk_size,
        )
        if key not in self._traces:
            image_tokens = self.architecture.image_tokens() * settings.images
            workload = Workload(
                rows=settings.micro_batch_size,
                prompt_tokens=settings.text_tokens + image_tokens,
                response_tokens=settings.response_tokens,
                chunk_size=settings.chunk_size,
            )
            kinds = trace_step(
                self.architecture,
                role,
                workload,
                bf16=settings.bf16,
                gradient_checkpointing=settings.gradient_checkpointing,
                lora_rank=settings.lora_rank,
                train=train,
            )
            kinds.pop("gradients", None)
            trained = train and (not settings.lora_rank or settings.lora_vision)
            kinds["activations"] = kinds.get("activations", 0) + vision_bytes(
                self.architecture.config,
                settings.micro_batch_size * image_tokens,
                # Checkpointing keeps a tower's layers as it keeps the language model's.
                trained=trained and not settings.gradient_checkpointing,
                bytes_per_element=2 if settings.bf16 else 4,
            )
            self._traces[key] = kinds
        return self._traces[key]

    def _kv_cache_bytes(self, settings: Settings) -> int:
        """Keys and values of `max_num_seqs` sequences of full length, all layers."""
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


def _sharding(settings: Settings, number: int, tensors: CopyTensors) -> Sharding:
    return Sharding(
        zero_stage=settings.zero_stage,
        num_ranks=number,
        bf16=settings.bf16,
        reduce_bucket_size=min(REDUCE_BUCKET_SIZE, tensors.num_trained),
    )


def _gathered_bytes(tensors: CopyTensors, sharding: Sharding) -> int:
    """Whole parameters that ZeRO 3 holds around the layer at work, at most
    `stage3_max_live_parameters` elements.
    """
    if sharding.zero_stage != 3 or sharding.num_ranks == 1:
        return 0
    return min(LIVE_PARAMETERS, tensors.num_parameters) * (2 if sharding.bf16 else 4)


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
    together = phase == "sync" or (phase == "train" and not settings.time_slice)
    names = tuple(working)
    return [names] if together or not names else [(name,) for name in names]


def _present(phase: str, active: tuple[str, ...], working: Mapping[str, Kinds]) -> tuple[str, ...]:
    """Copies that are on the device for a moment: the judge's two come and go together."""
    return tuple(working) if phase == "judge" else active
