"""The frozen reference: a policy module without an optimiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.forward import forward_shape
from actors.giving_back import GivesBack, give_back
from actors.ledger import PhaseMeter, Reading
from actors.memory import module_bytes, storages
from actors.modules import PolicyModule, load_vlm
from actors.packing import use_packing
from actors.parking import Parking
from actors.process_settings import settle
from actors.progress import note
from actors.scoring import score_rows
from actors.train_spec import TrainSpec
from actors.weight_sync import Bucket, checkpoint_tensors, make_buckets, open_bucket
from trainers.batch import Batch, Row
from trainers.data.images import ImageStore
from trainers.data.processing import Processing


class ReferenceActor(GivesBack):
    """Log-probabilities under frozen weights; `refresh` makes another policy the reference."""

    def __init__(self, *, num_threads: int | None = None):
        settle(num_threads)
        self._module: PolicyModule | None = None
        self.meter = PhaseMeter()
        self._parking = Parking()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def warm_up(self) -> None:
        """Do the slow imports now."""
        import transformers.models.llava.modeling_llava  # noqa: F401

    def load(self, spec: TrainSpec) -> None:
        """Build the frozen module as `spec` says of a policy."""
        self.meter.forget()
        self.processing = Processing(spec.model_dir, ImageStore(spec.image_root))
        self._spec = spec
        vlm = load_vlm(spec.model_dir, torch.bfloat16 if spec.bf16 else torch.float32)
        if spec.packing:
            use_packing(vlm)
        module = PolicyModule(
            vlm,
            banned_ids=self.processing.banned_ids(),
            temperature=spec.temperature,
            chunk_size=spec.chunk_size,
        )
        self._module = module.eval().requires_grad_(False).to(self.device)
        note("load: built the copy")

    def unload(self) -> None:
        """Free the copy; on a GPU what the allocator kept of it, too."""
        self._module = None
        self._parking = Parking()
        give_back()

    @torch.no_grad()
    def score_rows(self, rows: Sequence[Row], *, batch_size: int | None = None) -> list[np.ndarray]:
        """Logprobs of each row's target tokens; `batch_size` rows a forward, by default those of a
        micro-batch.
        """
        forwards = self._spec.forwards(batch_size)
        return score_rows(self._module, self.processing, rows, forwards, self.device, self._track)

    def _track(self, batch: Batch) -> AbstractContextManager[Any]:
        def held() -> dict[str, list[Tensor]]:
            return {"weights": self._tensors(), "activations": list(batch.tensors())}

        assert self._module is not None
        size = math.prod(forward_shape(self._module.vlm, batch))
        return self.meter.track("logprobs", "reference", size, held, self.processing.vocab_size)

    @torch.no_grad()
    def refresh(self, buckets: Sequence[Bucket], rate: float = 1.0) -> None:
        """Take the weights of `buckets` (checkpoint names, every parameter), or with a `rate` below
        1 move towards them: (1 - rate) * own + rate * theirs.

        Raises:
            RuntimeError: a parameter is missing from the buckets, so it would stay stale.
        """
        assert self._module is not None
        note(f"refresh: received {len(buckets)} buckets")
        vlm = self._module.vlm
        new = dict(pair for bucket in buckets for pair in open_bucket(bucket))
        held = storages(vlm.state_dict().values())
        for name, tensor in checkpoint_tensors(vlm):
            if name not in new:
                raise RuntimeError(f"reference refresh: no weights for {name}; it would be stale")
            # Renaming keeps the storage; a conversion that copies would leave the module as it was.
            assert tensor.untyped_storage().data_ptr() in held, f"{name} is not the module's own"
            if rate < 1:
                tensor.lerp_(new[name].to(tensor), rate)
            else:
                tensor.copy_(new[name])

    def weight_buckets(self, bucket_bytes: int) -> list[Bucket]:
        """The copy's weights under checkpoint names, for an engine to answer as it would."""
        assert self._module is not None
        return make_buckets(checkpoint_tensors(self._module.vlm), bucket_bytes)

    def end_phase(self, phase: str) -> Reading:
        """This process's memory in the phase that ends now, for the ledger."""
        copies = {"reference": held} if (held := self.memory()) else {}
        if self._parking.parked:
            return self.meter.read(phase, {}, copies)
        return self.meter.read(phase, copies)

    def park(self) -> int:
        """Move the copy to host memory until `wake`. Returns the bytes moved."""
        return self._parking.park(self._tensors())

    def wake(self) -> int:
        """Bring the copy back to the device, if it is parked. Returns the bytes moved."""
        return self._parking.wake()

    def _tensors(self) -> list[Tensor]:
        assert self._module is not None
        return [*self._module.parameters(), *self._module.buffers()]

    def memory(self) -> dict[str, int]:
        """Bytes of the copy; empty when none is loaded."""
        if self._module is None:
            return {}
        parked = self._parking.num_bytes
        return {"weights": parked or module_bytes(self._module)}
