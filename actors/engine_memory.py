"""What an engine holds, and where: counted by kind, sent to sleep, woken.

Asleep, its weights are in host memory and its KV cache is gone; it is made anew at the wake, since
every request is long answered. On a GPU this is vLLM's sleep mode at level 1. On a CPU vLLM's does
nothing, so the storages are emptied here, as `actors.parking` empties those of other copies; what
vLLM has packed for oneDNN is no tensor any more and stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, UntypedStorage

from actors.engine_adapter import buffers
from actors.giving_back import give_back
from actors.memory import storages, tensors_in
from actors.parking import Parking
from actors.vllm_api import sleeps_in_parts
from trainers.data.errors import UserError

WEIGHTS, KV_CACHE = LEAVING = ("weights", "kv_cache")
"""What leaves the device: the ledger's kinds, and vLLM's tags."""
GIB = 2**30


class EngineMemory:
    """The memory of one vLLM engine in this process.

    Args:
        llm: vLLM's `LLM`.
        checkpoint_bytes: size of the weights in the checkpoint, for what is packed.
        on_gpu: whether vLLM works there.
    """

    def __init__(self, llm: Any, checkpoint_bytes: int, *, on_gpu: bool):
        self._llm, self._on_gpu = llm, on_gpu
        self._mover: VllmMover | StorageMover = VllmMover(llm) if on_gpu else StorageMover(llm)
        self._away: dict[str, int] = {}
        workers = llm.collective_rpc(_weight_bytes)
        weights = sum(held for held, _ in workers)
        self._packed = max(0, checkpoint_bytes - weights) if workers[0][1] else 0

    @property
    def awake(self) -> bool:
        """Whether the weights are on the device; the KV cache may still be missing."""
        return WEIGHTS not in self._away

    def on_device(self) -> dict[str, int]:
        """Bytes by kind that are on the device now.

        On a CPU `packed_weights` are those that vLLM handed to oneDNN; the number is their size in
        the checkpoint.
        """
        held = {
            WEIGHTS: sum(held for held, _ in self._llm.collective_rpc(_weight_bytes))
            + sum(self._llm.collective_rpc(_adapter_bytes)),
            KV_CACHE: sum(self._llm.collective_rpc(_kv_bytes)),
            "packed_weights": self._packed,
        }
        gone = self.unmapped()
        return {kind: size for kind, size in held.items() if size and kind not in gone}

    def in_host(self) -> dict[str, int]:
        """Bytes by kind that wait in host memory."""
        return {kind: size for kind, size in self._away.items() if kind == WEIGHTS}

    def everywhere(self) -> dict[str, int]:
        """Bytes by kind that exist now, on the device or in host memory."""
        return self.on_device() | self.in_host()

    def unmapped(self) -> dict[str, int]:
        """Bytes by kind whose tensors keep their size with no memory behind them: vLLM's sleep on a
        GPU takes the memory away from under torch, whose allocator goes on counting it.
        """
        return dict(self._away) if self._on_gpu else {}

    def forget_requests(self) -> None:
        """Empty the prefix, multimodal and encoder caches, which rely on each other."""
        self._llm.reset_prefix_cache()
        self._llm.llm_engine.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()

    def sleep(self) -> int:
        """Weights to host memory, KV cache dropped. Returns the bytes moved, 0 if it sleeps."""
        if not self.awake:
            return 0
        self.forget_requests()  # a prefix that is known and has lost its keys would be garbage
        if not self._mover.sleeps_in_parts():
            self.wake_kv_cache()
        held = self.on_device()
        self._mover.sleep()
        self._away |= {kind: held[kind] for kind in LEAVING if kind in held}
        return self._away[WEIGHTS]

    def wake_weights(self) -> int:
        """Bring the weights back. Returns the bytes moved, 0 if they are there already."""
        return self._wake(WEIGHTS)

    def wake_kv_cache(self) -> None:
        """Make an empty KV cache, if there is none."""
        self._wake(KV_CACHE)

    def _wake(self, kind: str) -> int:
        if kind not in self._away:
            return 0
        self._mover.wake(kind, self._away[kind])
        return self._away.pop(kind)


class VllmMover:
    """vLLM's sleep mode; the engine must be loaded with `enable_sleep_mode`."""

    def __init__(self, llm: Any):
        self._llm = llm

    def sleeps_in_parts(self) -> bool:
        """Whether vLLM can sleep while a part is away; earlier versions unmap that part twice."""
        return sleeps_in_parts()

    def sleep(self) -> None:
        """Sleep at level 1, which keeps the weights; at level 2 they would have to be sent anew."""
        self._llm.sleep(level=1)

    def wake(self, kind: str, size: int) -> None:
        """Wake one part, if there is room for it.

        Raises:
            UserError: there is not.
        """
        free = self._llm.collective_rpc(_free_bytes)
        require_free(kind, size // len(free), min(free))
        self._llm.wake_up(tags=[kind])


class StorageMover:
    """The same on a CPU: storages are emptied, and filled again in place."""

    def __init__(self, llm: Any):
        self._llm = llm
        self._weights = Parking()
        self._caches: list[tuple[UntypedStorage, int]] = []

    def sleeps_in_parts(self) -> bool:
        """It can."""
        return True

    def sleep(self) -> None:
        """Park the weights and empty the KV cache, if there is one."""
        self._weights.park(self._llm.collective_rpc(_leaving)[0])
        for tensor in self._llm.collective_rpc(_kv_caches)[0]:
            storage = tensor.untyped_storage()
            if storage.nbytes():  # the layers share one
                self._caches.append((storage, storage.nbytes()))
                storage.resize_(0)
        give_back()

    def wake(self, kind: str, size: int) -> None:
        """Bring one part back; a KV cache comes back as zeros."""
        if kind == WEIGHTS:
            self._weights.wake()
            return
        for storage, nbytes in self._caches:
            storage.resize_(nbytes)
            storage.fill_(0)  # type: ignore[attr-defined]
        self._caches.clear()


def require_free(kind: str, needed: int, free: int) -> None:
    """Refuse to wake a part that does not fit; vLLM would fail halfway.

    Raises:
        UserError: names the setting, and what is needed and free.
    """
    if free < needed:
        raise UserError(
            f"rollout.sleep: an engine needs {needed / GIB:.2f} GiB of its device to wake "
            f"({kind.replace('_', ' ')}) and {free / GIB:.2f} GiB are free; set "
            "train.time_slice=true, so that copies leave the device too, or lower "
            "rollout.gpu_memory_utilization"
        )


def storage_sum(tensors: list[Tensor]) -> int:
    """Bytes of the tensors' storages, each once."""
    return sum(storages(tensors).values())


def _weights(worker: Any) -> list[Tensor]:
    model = worker.model_runner.get_model()
    return [*model.parameters(), *model.buffers()]


def _leaving(worker: Any) -> list[Tensor]:
    """Weights, and the tensors of an adapter."""
    return [*_weights(worker), *buffers(worker.model_runner.get_model())]


def _adapter_bytes(worker: Any) -> int:
    return storage_sum(buffers(worker.model_runner.get_model()))


def _weight_bytes(worker: Any) -> tuple[int, int]:
    """Bytes of the weight storages, and the number of parameters that were emptied."""
    parameters = list(worker.model_runner.get_model().parameters())
    return storage_sum(_weights(worker)), sum(each.numel() == 0 for each in parameters)


def _kv_bytes(worker: Any) -> int:
    return storage_sum(_kv_caches(worker))


def _free_bytes(_worker: Any) -> int:
    """Bytes that are free on a worker's device, its own slack given back first."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def _kv_caches(worker: Any) -> list[Tensor]:
    return list(tensors_in(list(worker.model_runner.kv_caches)))
