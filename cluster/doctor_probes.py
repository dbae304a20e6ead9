"""What `quartet doctor` tries for real, in a process of its own: `python -m cluster.doctor_probes`.

Two Ray actors pass one tensor as a weight sync does, and then add numbers as two DeepSpeed ranks
do. Prints a line of JSON for each, so that a crash or a hang is the caller's to report.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

NAMES = ("weight sync", "two-rank collective")
SIZE = 1000


class Probe:
    """One of two processes."""

    def __init__(self, rank: int):
        self.rank = rank
        self.listener: Any = None

    def process(self) -> int:
        """Its number."""
        return os.getpid()

    def send(self) -> Any:
        """One bf16 tensor, packed as the policy's weights are."""
        import torch

        from actors.weight_sync import make_buckets

        device = "cuda" if torch.cuda.is_available() else "cpu"
        tensor = torch.arange(SIZE, dtype=torch.float32, device=device).bfloat16()
        return make_buckets([("probe", tensor)], 2**20)

    def receive(self, buckets: Any) -> float:
        """Its sum, after the checksum was compared."""
        from actors.weight_sync import open_bucket

        ((_, tensor),) = [pair for bucket in buckets for pair in open_bucket(bucket)]
        return float(tensor.double().sum())

    def listen(self) -> tuple[str, int]:
        """Where the other rank finds this one."""
        from actors.rendezvous import listen

        self.listener = listen()
        host, port = self.listener.getsockname()
        return host, port

    def add(self, host: str, port: int, backend: str) -> float:
        """The sum of both ranks' numbers, 1 and 2."""
        import torch

        from actors.rendezvous import join

        join(backend, host, port, self.rank, 2, self.listener)
        value = torch.tensor(self.rank + 1.0, device="cuda" if backend == "nccl" else "cpu")
        torch.distributed.all_reduce(value)
        torch.distributed.destroy_process_group()
        return float(value)


def main() -> int:
    """Both probes; 0 if they could be made, whatever they found."""
    from cluster.offline import OFFLINE, ON_LOOPBACK, go_offline

    go_offline()
    import ray
    import torch

    from cluster.attach import attach

    attach({**OFFLINE, **({} if "RAY_ADDRESS" in os.environ else ON_LOOPBACK)})
    gpus = ray.cluster_resources().get("GPU", 0.0)
    # NCCL refuses two ranks on one GPU.
    backend = "nccl" if gpus >= 2 else "gloo"
    options = {"num_cpus": 0, "num_gpus": 1 if gpus >= 2 else gpus / 2}
    actor = ray.remote(Probe).options(**options)
    first, second = actor.remote(0), actor.remote(1)
    assert len({ray.get(one.process.remote()) for one in (first, second)}) == 2
    begun = time.perf_counter()
    total = ray.get(second.receive.remote(first.send.remote()))
    expected = float(torch.arange(SIZE, dtype=torch.float32).bfloat16().double().sum())
    _say(NAMES[0], total == expected, f"one tensor in {time.perf_counter() - begun:.1f} s")
    begun = time.perf_counter()
    host, port = ray.get(first.listen.remote())
    sums = ray.get([one.add.remote(host, port, backend) for one in (first, second)])
    seconds = time.perf_counter() - begun
    _say(NAMES[1], sums == [3.0, 3.0], f"{backend} on {host} in {seconds:.1f} s")
    ray.shutdown()
    return 0


def _say(name: str, good: bool, found: str) -> None:
    print(json.dumps({"name": name, "good": good, "found": found}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
