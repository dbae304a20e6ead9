"""Writes benchmarks/sync_cpu.json: a weight sync beside a copy of the same bytes, by model size.

    python -m benchmarks.weight_sync
    python -m benchmarks.weight_sync --widths 1 3 --repeats 3 --output /tmp/sync.json

The drawn world's architecture, 1 to 12 times as wide, with random weights. In turn: a sync as a
run makes it (`cluster.sync`: buckets through the object store, every so many with checksums, vLLM's
own reload, caches emptied); a copy of the same arrays to the engine's process through the object
store, copied out of it once; and vLLM's reload alone, of tensors that are there. Medians.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ray

from benchmarks import bare
from benchmarks.real_run import real_run
from benchmarks.result import origin, parser, write
from cluster.bench_models import widened
from cluster.residency import train_spec
from cluster.run import Run
from cluster.sync import sync
from trainers.data.drawn_model import build_processor, save_pretrained_folder

WIDTHS = (1, 3, 6, 12)


def measure(width: int, repeats: int, threads: int, folder: Path) -> dict[str, float]:
    """Medians of one width; the first turn warms up."""
    model = folder / f"width-{width}"
    save_pretrained_folder(widened(width), build_processor(), model)
    values = {
        "method": {"name": "dpo"},
        "model": str(model),
        "judge": "random",
        "num_threads": threads,
    }
    with real_run(values, folder) as run:
        run.session.load_trainer("policy", train_spec(run.arm, "policy"))
        turns = [turn(run, number) for number in range(repeats + 1)][1:]
    found = {key: median(each[key] for each in turns) for key in turns[0]}
    return {"width": width, **found, **ratios(turns)}


def turn(run: Run, number: int) -> dict[str, float]:
    """Seconds of each of the three, and the bytes."""
    session, arm = run.session, run.arm
    policy, engine = session.trainer("policy").actors[0], session.actor("rollout")
    arm.round = number
    begun = time.perf_counter()
    sync(session, arm)
    synced = time.perf_counter()
    arrays = policy.__ray_call__.remote(bare.own_arrays)
    size = ray.get(engine.__ray_call__.remote(bare.received, arrays))
    copied = time.perf_counter()
    del arrays
    buckets = policy.weight_buckets.remote(arm.config.train.bucket_mib * 2**20, checked=False)
    reload = ray.get(engine.__ray_call__.remote(bare.load_weights, buckets))
    return {
        "bytes": float(size),
        "sync": synced - begun,
        "copy": copied - synced,
        "reload": reload["seconds"],
    }


def ratios(turns: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians of the sync over the copy, and over the engine's reload, of the same turn."""
    return {
        f"sync_over_{other}": median(each["sync"] / each[other] for each in turns)
        for other in ("copy", "reload")
    }


def main() -> None:
    """Measure and write."""
    options = parser(__doc__, "sync_cpu.json")
    options.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS))
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--threads", type=int, default=2, help="of each actor")
    chosen = options.parse_args()
    result: dict[str, Any] = {
        **origin("benchmarks.weight_sync", chosen.threads),
        "repeats": chosen.repeats,
        "sizes": [],
    }
    with tempfile.TemporaryDirectory(prefix="quartet-sync-") as folder:
        for width in chosen.widths:
            size = measure(width, chosen.repeats, chosen.threads, Path(folder))
            result["sizes"].append(size)
            print({key: round(value, 4) for key, value in size.items()}, flush=True)
            write(chosen.output, result)


if __name__ == "__main__":
    main()
