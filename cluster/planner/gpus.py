"""GPUs by name, with the memory that a process on them can really get."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from trainers.data.errors import UserError

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One card.

    `memory_bytes` is the total that `torch.cuda.mem_get_info` reports, of which a process's CUDA
    context still takes its part: less than nvidia-smi's total, which counts what the driver keeps
    (81,559 MiB = 79.65 GiB on an H100 of which 79.1 to 79.2 GiB are left), and not what the card
    is sold as ("24 GB" is 21.9 GiB with error correction, "80 GB" is 79.1 GiB). It varies by up to
    0.2 GiB with driver and board. The numbers here are the lowest "GPU 0 has a total capacity of
    ... GiB" found in public out-of-memory messages of PyTorch, rounded down to 0.1 GiB.
    """

    name: str
    memory_bytes: int
    marketed_gb: int
    """What it is sold as; bare sizes as "80gb" are looked up here."""
    aliases: tuple[str, ...] = ()
    """Other names, among them those that the driver gives."""


def _gpu(name: str, gib: float, marketed_gb: int, *aliases: str) -> Gpu:
    return Gpu(name=name, memory_bytes=int(gib * GIB), marketed_gb=marketed_gb, aliases=aliases)


GPUS: tuple[Gpu, ...] = (
    _gpu("rtx4090", 23.5, 24, "4090"),
    _gpu("rtx3090", 23.5, 24, "3090", "rtx3090ti"),
    _gpu("l4", 21.9, 24),
    _gpu("a10", 21.9, 24, "a10g"),
    _gpu("rtx5090", 31.3, 32, "5090"),
    _gpu("a100-40", 39.3, 40, "a100-sxm4-40gb", "a100-pcie-40gb", "a100-40gb"),
    _gpu("l40s", 44.3, 48, "l40"),
    _gpu("a40", 44.3, 48),
    _gpu("a6000", 47.2, 48, "rtx-a6000"),
    _gpu("rtx6000-ada", 47.2, 48, "rtx-6000-ada-generation"),
    _gpu("a100-80", 79.1, 80, "a100-sxm4-80gb", "a100-80gb-pcie", "a100-80gb"),
    _gpu("h100", 79.1, 80, "h100-80", "h100-80gb", "h100-80gb-hbm3", "h100-sxm", "h100-pcie"),
    _gpu("h100-nvl", 93.0, 94),
    _gpu("h20", 95.0, 96),
    _gpu("h200", 139.7, 141, "h200-nvl", "h200-sxm"),
    _gpu("b200", 178.3, 192),
    _gpu("mi300x", 191.6, 192),
)
"""RTX A6000 and RTX 6000 Ada as they come, without error correction, which would cost 3 GiB."""


def find_gpu(name: str) -> Gpu:
    """The card of that name, written in any case, with or without spaces and the vendor.

    A bare size, "80gb" or "80", is the smallest card sold with that many GB, so that a plan for it
    holds on all of them. Of other sizes it is that many times 10**9 bytes.

    Raises:
        UserError: Unknown name, or a size of 0.
    """
    key = _key(name)
    size = re.fullmatch(r"(\d+)(gb|gib|g)?", key)
    if size and int(size[1]) < 1000:
        return _of_size(int(size[1]), name)
    names = {_key(word): gpu for gpu in GPUS for word in (gpu.name, *gpu.aliases)}
    if key in names:
        return names[key]
    near = {names[word].name: None for word in difflib.get_close_matches(key, names, n=3)}
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"unknown GPU {name!r}; {hint}known: {', '.join(gpu.name for gpu in GPUS)}, "
        f"or a size such as 80gb"
    )


def _of_size(gb: int, name: str) -> Gpu:
    if gb == 0:
        raise UserError(f"{name!r}: a GPU has at least 1 GB; give a size such as 80gb")
    listed = [gpu.memory_bytes for gpu in GPUS if gpu.marketed_gb == gb]
    memory_bytes = min(listed, default=gb * 10**9)
    return Gpu(name=f"{gb}gb", memory_bytes=memory_bytes, marketed_gb=gb)


def _key(name: str) -> str:
    return re.sub(r"nvidia|geforce|amd|instinct|[^a-z0-9]", "", name.lower())
