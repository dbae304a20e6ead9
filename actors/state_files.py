"""The files in which a trained copy's state is saved: safetensors and JSON, nothing executable.

policy-00001.safetensors  tensors of `actors.train_state`, in files of bounded size
policy.json               names of all tensors and the file of each
policy.rank0.json         what every rank has of its own: counters and random generators
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from actors.export import write_tensors
from actors.train_state import load_trained_state
from trainers.data.errors import UserError
from trainers.random_state import random_state, set_random_state

SHARD_BYTES = 2**31
"""A file is written when so much has come together: more is never in host memory at once."""


class StateFiles:
    """The files of one role in a checkpoint's folder.

    Raises:
        UserError: while loading, a file is missing or lacks something; names it.
    """

    def __init__(self, folder: Path, role: str):
        self.folder, self.role = folder, role
        self._open: dict[str, Any] = {}

    def save(
        self,
        tensors: Iterable[tuple[str, Tensor]],
        counters: Mapping[str, Any],
        *,
        rank: int,
        ranks: int,
    ) -> None:
        """Write a rank's own state, and on rank 0 the tensors. The other ranks only iterate, as
        they have a part in gathering them.
        """
        own = {"ranks": ranks, "counters": dict(counters), "random": random_state()}
        self._rank_file(rank).write_text(json.dumps(own) + "\n")
        index: dict[str, str] = {}
        held: dict[str, Tensor] = {}
        for name, tensor in tensors:
            if rank == 0:
                held[name] = tensor.to("cpu", copy=True).contiguous()
                if sum(part.nbytes for part in held.values()) >= SHARD_BYTES:
                    self._save_shard(held, index)
        if rank == 0:
            self._save_shard(held, index)
            self._index_file.write_text(json.dumps({"tensors": index}, indent=1) + "\n")

    def _save_shard(self, held: dict[str, Tensor], index: dict[str, str]) -> None:
        name = f"{self.role}-{len(set(index.values())) + 1:05d}.safetensors"
        write_tensors(held, self.folder / name)
        index |= dict.fromkeys(held, name)
        held.clear()

    def load_into(self, engine: Any) -> None:
        """Set a fresh engine's weights and optimiser states. All ranks call it together."""
        index: dict[str, str] = _read_json(self._index_file)["tensors"]
        try:
            load_trained_state(engine, set(index), lambda name: self._read(name, index[name]))
        except KeyError as error:
            raise UserError(
                f"{self._index_file}: {error.args[0]} is not in both the checkpoint and the model; "
                "the run's model or its settings have changed"
            ) from None
        self._open.clear()

    def _read(self, name: str, file: str) -> Tensor:
        path = self.folder / file
        if not path.is_file():
            raise UserError(f"{path}: the checkpoint lacks this file")
        if file not in self._open:
            self._open = {file: safe_open(path, framework="pt")}
        handle = self._open[file]
        if name not in handle.keys():  # noqa: SIM118, not a mapping
            raise UserError(f"{path}: the checkpoint lacks {name}")
        tensor: Tensor = handle.get_tensor(name)
        return tensor

    def counters(self, rank: int, ranks: int) -> dict[str, Any]:
        """A rank's counters; its random generators are set. With another number of ranks than was
        saved only `steps`, which is the same for all: nothing is drawn from the generators.
        """
        own = _read_json(self._rank_file(0))
        if own["ranks"] != ranks:
            return {"steps": own["counters"]["steps"]}
        own = _read_json(self._rank_file(rank))
        set_random_state(own["random"])
        counters: dict[str, Any] = own["counters"]
        return counters

    @property
    def _index_file(self) -> Path:
        return self.folder / f"{self.role}.json"

    def _rank_file(self, rank: int) -> Path:
        return self.folder / f"{self.role}.rank{rank}.json"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except OSError:
        raise UserError(f"{path}: the checkpoint lacks this file") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from None
    return values
