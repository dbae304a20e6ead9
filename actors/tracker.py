"""Counts the tensor storages that live during a piece of work, and what they were at the peak.

A dispatch mode sees the outputs of every operation, the backward's and the optimiser's included,
and a weak reference to each storage tells when it is freed. So it works alike on a CPU, whose
allocator keeps no statistics, on a GPU, and on fake tensors, which have shapes and no memory: the
ledger measures with it and the planner traces with it. Not seen: scratch memory inside a kernel.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(slots=True)
class _Entry:
    """A storage; its address may be another's after it was freed, the entry is its own."""

    kind: str
    size: int


class StorageTracker(TorchDispatchMode):
    """Bytes by kind that were alive when their sum was largest.

    Example: one linear layer without bias of (4, 8) on 2 rows of float32, forward and backward of
    the sum: held weights 128 bytes; at the peak also the output (64), its gradient and the
    weight's.

    Args:
        held: tensors that exist before, by kind; each storage counts once, for the first kind.
        vocab_size: a new tensor whose last axis has this size is `logits`, any other
            `activations`. None if nothing is.
    """

    def __init__(
        self, held: Mapping[str, Iterable[Tensor]] | None = None, vocab_size: int | None = None
    ):
        super().__init__()
        self.vocab_size = vocab_size
        self.current = 0
        self.peak = 0
        self._live: dict[int, _Entry] = {}
        self._at_peak: dict[int, _Entry] = {}
        self._rising = False
        self._finalizers: dict[int, weakref.finalize] = {}
        for kind, tensors in (held or {}).items():
            for tensor in tensors:
                self._see(tensor, kind)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count its outputs."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                last = leaf.shape[-1] if leaf.dim() > 1 else None
                logits = self.vocab_size is not None and last == self.vocab_size
                self._see(leaf, "logits" if logits else "activations")
        return result

    def __exit__(self, *exception: Any) -> None:
        """Stop watching; the counts stay."""
        super().__exit__(*exception)
        for finalizer in self._finalizers.values():
            finalizer.detach()

    def name(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Count these tensors as `kind` from now on, and at the peak seen so far.

        For what cannot be told when it is made: gradients, the optimiser's first states.
        """
        for tensor in tensors:
            entry = self._live.get(tensor.untyped_storage()._cdata)
            if entry is not None:
                entry.kind = kind

    def at_peak(self) -> dict[str, int]:
        """Kind -> bytes when the sum was largest."""
        self._settle()
        sums: dict[str, int] = {}
        for entry in self._at_peak.values():
            sums[entry.kind] = sums.get(entry.kind, 0) + entry.size
        return sums

    def _see(self, tensor: Tensor, kind: str) -> None:
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse or opaque: no storage to count
            return
        address, size = storage._cdata, storage.nbytes()
        entry = self._live.get(address)
        if entry is None:
            self._finalizers[address] = weakref.finalize(storage, self._freed, address)
            self._live[address] = _Entry(kind, size)
            self._grow(size)
        elif entry.size != size:  # resized in place
            self._grow(size - entry.size)
            self._live[address] = _Entry(entry.kind, size)

    def _freed(self, address: int) -> None:
        self._grow(-self._live[address].size)
        del self._live[address], self._finalizers[address]

    def _grow(self, size: int) -> None:
        if size < 0:
            self._settle()
        self.current += size
        if self.current > self.peak:
            self.peak = self.current
            self._rising = True

    def _settle(self) -> None:
        """Remember what is alive at a peak, once: when the sum is about to fall, or at the end."""
        if self._rising:
            self._at_peak = dict(self._live)
            self._rising = False


def live_tensors() -> list[Tensor]:
    """Every tensor that Python can reach now; slow (it walks all objects of the process)."""
    types: set[type] = set()
    fresh = [torch.Tensor]
    while fresh:
        types.update(fresh)
        fresh = [sub for kind in fresh for sub in kind.__subclasses__() if sub not in types]
    # Asking for the type alone touches no object: some proxies do things when they are looked at.
    return [item for item in gc.get_objects() if type(item) in types]
