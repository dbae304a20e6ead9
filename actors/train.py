"""A trained copy in its own process: a module, a DeepSpeed engine, and the rows it trains on.

`TrainActor` is plain Python: `cluster` makes a Ray actor of it, tests call it in-process. One
class serves the policy, the critic and the reward model, which differ only in their module.
"""

from __future__ import annotations

import math
import random
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from actors.conditions import trained_conditions
from actors.export import save_model_folder
from actors.extensions import load_extensions
from actors.forward import forward_shape
from actors.giving_back import GivesBack, give_back_dead
from actors.ledger import BORROWED, PhaseMeter, Reading
from actors.liger import use_liger
from actors.lora import adapters_off, add_adapters, twin
from actors.memory import bytes_by_kind, engine_tensors, storages
from actors.micro_batches import micro_batches
from actors.modules import (
    CriticModule,
    PolicyModule,
    load_reward_module,
    load_vlm,
    save_score_head,
)
from actors.packing import use_packing
from actors.parking import Parking
from actors.parts import freeze
from actors.process_settings import settle
from actors.progress import note
from actors.ranks import most_of_ranks, not_finite, over_ranks, step_totals
from actors.rendezvous import join, listen
from actors.scoring import score_rows
from actors.segments import expand_segments
from actors.sending import Sends
from actors.spare_image import run_tower_always
from actors.state_files import StateFiles
from actors.swap_folder import swapping
from actors.tracker import StorageTracker
from actors.train_spec import TrainSpec, deepspeed_config
from actors.train_state import trained_state
from actors.weight_sync import Adapters, Bucket, checkpoint_tensors, make_buckets
from trainers.batch import Batch, Group, Row, encode_row
from trainers.conditions import Conditions
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.ledger import Copies
from trainers.losses import Metrics, add_metrics, metric_means
from trainers.method import Optimisation, Outputs
from trainers.schedule import learning_rate_factor


class LossFunction(Protocol):
    """What training needs of a method; `trainers.method.Method` has it."""

    def totals(self, batch: Batch) -> dict[str, float]:
        """Counts of a micro-batch that the loss divides by."""

    def loss(
        self, role: Any, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Scalar loss of a micro-batch and its metrics."""


OFFLOADED = ("optimizer", "masters", "gradients", "communication")
"""Kinds that DeepSpeed keeps where it steps: with the states go the gradients and the buffers that
both cross by, but for one scratch of the largest parameter.
"""
Stream = Callable[[Processing, int, int], Iterator[list[Batch]]]
"""From (processing, rank, world size) to this rank's share of endless minibatches, each a list of
micro-batches, made inside the training process."""


class TrainActor(Sends, GivesBack):
    """Holds a trained copy; `load` and `unload` let one process serve several runs.

    A second copy can live on the first one's frozen base (`load_tenant`).
    """

    def __init__(self, *, rank: int = 0, world_size: int = 1, num_threads: int | None = None):
        settle(num_threads)
        self.num_threads = torch.get_num_threads()
        self.rank, self.world_size = rank, world_size
        self.meter = PhaseMeter()
        self._parking = Parking()
        self._listener: socket.socket | None = None
        self._engine: Any = None
        self._tenant: TrainActor | None = None
        self._base: list[Tensor] = []
        self._borrows = False
        self._swap = ExitStack()
        self._stream: Iterator[list[Batch]] | None = None

    def warm_up(self) -> None:
        """Do the slow imports now."""
        import deepspeed  # noqa: F401

    def address(self) -> tuple[str, int]:
        """Where this process listens for the other ranks; for rank 0 to be asked."""
        self._listener = listen()
        host, port = self._listener.getsockname()
        return host, port

    def connect(self, host: str, port: int) -> None:
        """Join the group of this role's ranks."""
        import deepspeed

        load_extensions()
        expand_segments()
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        join(backend, host, port, self.rank, self.world_size, self._listener)
        deepspeed.init_distributed(backend, verbose=False)

    def load(self, spec: TrainSpec, vlm: Any = None) -> None:
        """Build the module from `spec.model_dir`, or on `vlm`, and wrap it in a fresh DeepSpeed
        engine.
        """
        import deepspeed

        self.unload()
        self.meter.forget()
        self.spec = spec
        self.processing = Processing(spec.model_dir, ImageStore(spec.image_root))
        dtype = torch.bfloat16 if spec.bf16 else torch.float32
        module: Any = self._build(spec, dtype, vlm)
        if spec.packing:
            use_packing(module.vlm)
        run_tower_always(module.vlm, spec.model_dir, self.world_size)
        if spec.lora_rank:
            add_adapters(
                module.vlm,
                rank=spec.lora_rank,
                alpha=spec.lora_alpha,
                vision=spec.lora_vision,
                seed=spec.lora_seed,
            )
        if spec.gradient_checkpointing:
            module.vlm.gradient_checkpointing_enable({"use_reentrant": False})
        module.train()
        freeze(module.vlm, spec.frozen)
        if spec.liger:
            use_liger(module.vlm)
        trained = [p for p in module.parameters() if p.requires_grad]
        if spec.offload_optimizer == "nvme":
            spec = self._swap.enter_context(swapping(spec))
        self._engine, *_ = deepspeed.initialize(
            model=module,
            model_parameters=trained,
            config=deepspeed_config(spec, sum(p.numel() for p in trained)),
        )
        self.device: torch.device = self._engine.device
        self.steps = 0
        self._largest = (0, 0)
        self._bytes = {"weights": bytes_by_kind(self._tensors())["weights"]}
        self._held: dict[str, int] | None = None
        note(f"load: {spec.role} wrapped by DeepSpeed")

    def load_tenant(self, spec: TrainSpec) -> None:
        """Load a second copy that trains adapters, and a head, on this copy's frozen base.

        Its calls go through `tenant`. ZeRO-3 cannot serve it: there each engine partitions the base
        in its own way.
        """
        assert self._engine is not None and self.spec.lora_rank, "load a copy with adapters first"
        assert self.spec.zero_stage < 3, "under ZeRO-3 a base belongs to one engine"
        tenant = TrainActor(rank=self.rank, world_size=self.world_size)
        vlm = twin(self._engine.module.vlm)
        base = [*vlm.parameters(), *vlm.buffers()]
        tenant.load(spec, vlm)
        tenant.meter = self.meter  # one process has one peak
        self._base, self._tenant = base, tenant
        tenant._base, tenant._borrows = base, True
        self._held = None  # what it holds is of other kinds now
        for copy in (self, tenant):
            copy._bytes = bytes_by_kind(copy._tensors())

    def tenant(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the second copy."""
        assert self._tenant is not None, "call load_tenant first"
        return getattr(self._tenant, name)(*args, **kwargs)

    def _build(self, spec: TrainSpec, dtype: torch.dtype, vlm: Any) -> nn.Module:
        if spec.role == "reward":
            return load_reward_module(spec.model_dir, dtype)
        vlm = vlm or load_vlm(spec.model_dir, dtype)
        if spec.role == "critic":
            return CriticModule(vlm)
        banned = self.processing.banned_ids()
        return PolicyModule(
            vlm, banned_ids=banned, temperature=spec.temperature, chunk_size=spec.chunk_size
        )

    def unload(self) -> None:
        """Free the copy: weights, gradients and optimiser states."""
        if self._engine is not None:
            self._engine.destroy()
        self._engine = None
        self._swap.close()
        if self._tenant is not None:
            self._tenant.unload()
        self._tenant, self._base = None, []
        self._parking = Parking()
        self._stream = None
        give_back_dead()  # DeepSpeed's engine is full of cycles, and each holds the whole copy

    def memory(self) -> dict[str, int]:
        """Bytes by kind, as measured between the last backward and its step."""
        return dict(self._bytes) if self._engine is not None else {}

    def conditions(self) -> Conditions:
        """What this policy was trained under, to tell whether two runs compare."""
        return trained_conditions(
            self._engine,
            ranks=self.world_size,
            most_rows=self.spec.micro_batch_size,
            largest=self._largest,
        )

    def end_phase(self, phase: str, beside: Copies | None = None) -> Reading:
        """This process's memory in the phase that ends now, for the ledger; `beside` is what copies
        hold that share the process and are none of this actor's.
        """
        if self._engine is None:
            return self.meter.read(phase, {})
        if self._parking.parked:
            return self.meter.read(phase, {}, {self.spec.role: self._parked_bytes})
        on_device, on_host = self._bytes_by_place()
        if self._tenant is not None:
            device, host = self._tenant._bytes_by_place()
            on_device, on_host = on_device | device, on_host | host
        return self.meter.read(phase, on_device | (beside or {}), on_host)

    def _bytes_by_place(self) -> tuple[Copies, Copies]:
        if self._held is None:  # it has worked since it was last counted
            self._held = bytes_by_kind(self._tensors())
        kinds, role = dict(self._held), self.spec.role
        away = {}
        if self.spec.offload_optimizer != "none":
            away = {kind: kinds.pop(kind) for kind in OFFLOADED if kind in kinds}
        return {role: kinds}, {role: away} if away else {}

    def _tensors(self) -> dict[str, list[Tensor]]:
        """What the copy holds, by kind; a base that two copies share is of a kind of its own."""
        kinds = engine_tensors(self._engine)
        if not self._base:
            return kinds
        shared = storages(self._base)
        own = [t for t in kinds["weights"] if t.untyped_storage().data_ptr() not in shared]
        where = BORROWED if self._borrows else "shared_weights"
        return {where: self._base, **kinds, "weights": own}

    def park(self) -> int:
        """Move the copy to host memory until `wake`. Returns the bytes moved."""
        self._parked_bytes = bytes_by_kind(self._tensors())
        tensors = engine_tensors(self._engine)
        return self._parking.park(tensor for kind in tensors.values() for tensor in kind)

    def _require_awake(self) -> None:
        # What an emptied storage computes is undefined, and may be a crash.
        assert not self._parking.parked, f"the copy {self.spec.role} is parked: wake it first"

    def wake(self) -> int:
        """Bring the copy back to the device, if it is parked. Returns the bytes moved."""
        return self._parking.wake()

    # Scoring -----------------------------------------------------------------------------------

    def score_rows(
        self, rows: Sequence[Row], *, batch_size: int | None = None, adapters: bool = True
    ) -> list[np.ndarray]:
        """Logprobs (policy) or values (critic) of each row's target tokens, no gradient.

        `batch_size` rows a forward, by default those of a micro-batch. Without `adapters` they are
        those of the frozen base that LoRA trains on.
        """
        self._require_awake()
        base = nullcontext() if adapters else adapters_off(self._engine.module.vlm)
        with torch.no_grad(), base:
            return self._score(self._engine, rows, batch_size)

    @torch.no_grad()
    def greedy_rows(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """The policy's likeliest token at each target place of the rows, given what stands before
        it; int64, one array per row.
        """
        self._require_awake()
        values = self._score(partial(self._engine, greedy=True), rows)
        return [array.astype(np.int64) for array in values]

    def _score(
        self, forward: Any, rows: Sequence[Row], batch_size: int | None = None
    ) -> list[np.ndarray]:
        # Equally many rows on each rank are equally many forwards, unless tokens are counted.
        most: Callable[[int], int] = int
        if self.spec.micro_batch_tokens:
            most = partial(most_of_ranks, device=self.device, world_size=self.world_size)
        return score_rows(
            forward,
            self.processing,
            rows,
            self.spec.forwards(batch_size),
            self.device,
            self._track_scoring,
            most,
        )

    def _track_scoring(self, batch: Batch) -> AbstractContextManager[Any]:
        return self._track("logprobs", batch, forward_shape(self._engine.module.vlm, batch))

    def _track(
        self, phase: str, batch: Batch, shape: tuple[int, int]
    ) -> AbstractContextManager[StorageTracker | None]:
        """Count what comes and goes with `batch`, a forward of this shape, if it is the largest."""
        self._held = None
        # Adam's states exist from the second step on, so the first is not representative.
        size = math.prod(shape) if self.steps or phase != "train" else 0

        def held() -> dict[str, list[Tensor]]:
            return {**self._tensors(), "activations": list(batch.tensors())}

        return self.meter.track(phase, self.spec.role, size, held, self.processing.vocab_size)

    # Training ----------------------------------------------------------------------------------

    def train(
        self,
        groups: Sequence[Group],
        method: LossFunction,
        optimisation: Optimisation,
        *,
        seed: int,
        num_threads: int | None = None,
    ) -> dict[str, float]:
        """Train on `groups` for the round's epochs. Returns mean metrics.

        Every rank gets all groups and takes its share of each minibatch, so that the loss can be
        divided by the count of the whole optimiser step: accumulating micro-batches, or using
        more ranks, does not change the gradient.
        """
        self._require_awake()
        if num_threads:
            torch.set_num_threads(num_threads)
        started = time.perf_counter()
        note(f"train: received {len(groups)} groups")
        encoded = {id(row): encode_row(row, self.processing) for group in groups for row in group}
        parts: list[Metrics] = []
        steps_before = self.steps
        order = list(range(len(groups)))
        shuffler = random.Random(seed)
        for _ in range(optimisation.epochs):
            shuffler.shuffle(order)
            for start in range(0, len(order), optimisation.minibatch_size):
                chosen = [groups[i] for i in order[start : start + optimisation.minibatch_size]]
                batches = micro_batches(
                    chosen,
                    encoded,
                    self.processing,
                    rank=self.rank,
                    world_size=self.world_size,
                    forwards=self.spec.forwards(),
                )
                parts.append(self._step(batches, method, optimisation))
        parts = over_ranks(parts, self.world_size)
        means = metric_means(add_metrics(parts))
        first = metric_means(parts[0] if parts else {})
        means |= {f"first/{name}": value for name, value in first.items()}
        means["steps"] = float(self.steps - steps_before)
        means["train_seconds"] = time.perf_counter() - started
        torch.set_num_threads(self.num_threads)
        return means

    def open_stream(self, stream: Stream) -> None:
        """Set the source of `train_stream`."""
        self._stream = stream(self.processing, self.rank, self.world_size)

    def train_stream(
        self, num_steps: int, method: LossFunction, optimisation: Optimisation
    ) -> dict[str, float]:
        """Take `num_steps` optimiser steps on the stream's minibatches. Returns mean metrics."""
        assert self._stream is not None, "call open_stream first"
        parts = []
        for _ in range(num_steps):
            minibatch = [(batch, 1.0) for batch in next(self._stream)]
            parts.append(self._step(minibatch, method, optimisation))
        return metric_means(add_metrics(parts))

    def _step(
        self,
        weighted: Iterable[tuple[Batch, float]],
        method: LossFunction,
        optimisation: Optimisation,
    ) -> Metrics:
        batches = [(batch.to(self.device), weight) for batch, weight in weighted]
        totals = step_totals(batches, method.totals, self.device, self.world_size)
        factor = learning_rate_factor(
            self.steps,
            warmup_steps=optimisation.warmup_steps,
            total_steps=optimisation.total_steps,
        )
        for group in self._engine.optimizer.param_groups:
            ratio = self.spec.muon_ratio or 1.0 if group.get("use_muon") else 1.0
            group["lr"] = optimisation.learning_rate * factor * ratio
        parts: list[Metrics] = []
        sum_of_losses = torch.zeros((), device=self.device)
        for index, (batch, weight) in enumerate(batches):
            last = index == len(batches) - 1
            shape = forward_shape(self._engine.module.vlm, batch)  # once: it may wait for a GPU
            self._largest = max(self._largest, shape, key=math.prod)
            self._engine.set_gradient_accumulation_boundary(last)
            with self._track("train", batch, shape) as tracker:
                loss, metrics = method.loss(self.spec.role, self._engine(batch), batch, totals)
                sum_of_losses += loss.detach()
                # DeepSpeed averages gradients over ranks; the loss is a share of the global sum.
                self._engine.backward(loss * (weight * self.world_size))
                if tracker is not None:
                    tracker.name("gradients", engine_tensors(self._engine)["gradients"])
                if last and (self.steps == 1 or self.steps % 16 == 0):
                    # Between the last backward and its step, when all kinds exist.
                    self._bytes = bytes_by_kind(self._tensors())
                # Once a step, and before it: ranks may differ in micro-batches.
                if last and (what := not_finite(sum_of_losses, self.world_size)):
                    raise FloatingPointError(
                        f"{self.spec.role}: loss is {what} at step {self.steps + 1}; lower "
                        f"method.learning_rate (now {optimisation.learning_rate:g}) or inspect the "
                        "round's records"
                    )
                self._engine.step()
            if weight:
                parts.append({**metrics, "loss": (float(loss.detach()), 1.0)})
        self.steps += 1
        note(f"train: {self.spec.role} took step {self.steps}")
        summed = add_metrics(parts)
        if "loss" in summed:
            # The parts of one step add up to its loss; only steps are averaged.
            summed["loss"] = (summed["loss"][0], 1.0)
        return summed

    # Weights -----------------------------------------------------------------------------------

    def weight_buckets(
        self, bucket_bytes: int, *, checked: bool = True, adapters: Adapters = "merged"
    ) -> list[Bucket]:
        """The VLM's weights under checkpoint names, in buckets, with checksums if `checked`. Under
        ZeRO-3 all ranks must call it together; only rank 0 returns buckets.
        """
        self._require_awake()
        return make_buckets(self._weights(adapters), bucket_bytes, checked=checked)

    def _weights(self, adapters: Adapters = "merged") -> Iterator[tuple[str, Tensor]]:
        vlm, gather = self._engine.module.vlm, self.spec.zero_stage == 3
        return checkpoint_tensors(vlm, gather=gather, keep=self.rank == 0, adapters=adapters)

    def save(self, folder: str, reward_settings: dict[str, Any] | None = None) -> None:
        """Write a Hugging Face folder with processor (and score head) that vLLM can load."""
        self._require_awake()
        module = self._engine.module
        state = dict(self._weights())
        if self.rank != 0:
            return
        save_model_folder(module.vlm, state, self.processing, Path(folder))
        if reward_settings is not None:
            save_score_head(module, Path(folder), reward_settings)

    def save_state(self, folder: str) -> None:
        """Write what training goes on from (`actors.state_files`). All ranks must call it."""
        self._require_awake()
        counters = {"steps": self.steps, "largest": self._largest, "bytes": self._bytes}
        files = StateFiles(Path(folder), self.spec.role)
        files.save(trained_state(self._engine), counters, rank=self.rank, ranks=self.world_size)

    def load_state(self, folder: str) -> None:
        """Go on from `save_state`, after `load`. The number of ranks may be another one.

        Raises:
            UserError: the files lack something, or belong to another model; names it.
        """
        self._require_awake()
        files = StateFiles(Path(folder), self.spec.role)
        files.load_into(self._engine)
        counters = files.counters(self.rank, self.world_size)
        self.steps = counters["steps"]
        self._held = None
        if "largest" in counters:
            self._largest, self._bytes = tuple(counters["largest"]), counters["bytes"]
