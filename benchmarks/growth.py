"""Writes benchmarks/growth_cpu.json: how the cost of a round's parts grows.

    python -m benchmarks.growth                   # every curve, a random model of one million parameters
    python -m benchmarks.growth --curves images --repeats 1 --output /tmp/growth.json

Four curves, each in one run: rollouts per prompt, response length, images per prompt, ranks of a
trained copy. Parts: `generate` (vLLM, answers of a fixed length), `logprobs` (a trainer's forwards)
and `train` (one optimiser step over all rows). All points of a curve are measured in turn, and in
turn again (`--repeats`); figures are medians. Growth is the slope of log seconds over log size
from the middle point to the largest, where fixed costs weigh least: 1 is linear. CPU seconds (of all
threads, of all ranks) stand beside seconds, since they do not count what else the machine did.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import ray

from actors.engine import EngineSpec
from actors.train_spec import TrainSpec
from benchmarks import bare
from benchmarks.figures import growth
from benchmarks.result import origin, parser, write
from cluster.console import Console
from cluster.session import Session
from trainers.batch import Row
from trainers.config import SFTConfig
from trainers.data.drawn_model import build_model, build_processor, save_pretrained_folder
from trainers.data.images import ImageStore
from trainers.data.records import Sample, Turn
from trainers.data.scenes import scene_samples
from trainers.registry import make_method

POSITIONS = 2048
CURVES: dict[str, Sequence[int]] = {
    "rollouts_per_prompt": (1, 2, 4, 8, 16),
    "response_length": (64, 128, 256, 512, 1024),
    "images_per_prompt": (0, 1, 2, 3, 4),
    "ranks": (1, 2, 4),
}
PROMPTS, LENGTH, ROLLOUTS = 8, 32, 4
"""Of a point, where they are not what its curve varies."""


def model(folder: Path) -> str:
    """A random LLaVA that takes long sequences: with rotary positions the limit is a setting."""
    path = folder / "model"
    save_pretrained_folder(build_model(0), build_processor(), path)
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = POSITIONS
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def prompts(store: ImageStore, images: int) -> list[Sample]:
    """Questions about so many images each."""
    drawn = list(scene_samples(1, PROMPTS * max(1, images), store.put_image))
    text = "describe the image"
    return [
        Sample(
            id=f"p{index}",
            prompt=(Turn(role="user", text=text, num_images=images),),
            images=tuple(s.images[0] for s in drawn[index * images : (index + 1) * images]),
        )
        for index in range(PROMPTS)
    ]


def rows_of(samples: Sequence[Sample], rollouts: int, length: int) -> list[Row]:
    """Random responses of exactly `length` tokens; ids 10 to 30 are words of the world."""
    rng = random.Random(0)
    rows = []
    for sample in samples:
        for number in range(rollouts):
            ids = tuple(rng.randrange(10, 30) for _ in range(length))
            row = Row.of_response(sample, ids, f"{sample.id}/{number}", weight=1.0)
            rows.append(row)
    return rows


def fixed_length(actor: Any, samples: Sequence[Sample], rollouts: int, length: int) -> bare.Timed:
    """The `generate` of vLLM with exactly `length` tokens an answer; runs in the rollout actor."""
    from actors.engine import Request

    params = bare.sampling(actor.engine, rollouts, 1.0, length)
    params.ignore_eos = True
    requests = [Request(sample.prompt, sample.images, rollouts) for sample in samples]
    return bare.answer(actor.engine, requests, params, 0)[0]


class Bench:
    """Engine and trainers of one session, and what a point of a curve costs on them."""

    def __init__(self, session: Session, folder: str, store: ImageStore):
        self.session, self.folder, self.store = session, folder, store
        self.method = make_method(SFTConfig())
        self.groups: dict[int, Any] = {}

    def ranks(self, number: int) -> Any:
        """Trainers with a thread each."""
        if number not in self.groups:
            group = self.session.ranks(f"policy{number}", number, 1)
            group.connect()
            group.ask("load", self._spec(), limit="load")
            self.groups[number] = group
        return self.groups[number]

    def end_ranks(self) -> None:
        """Their processes need memory."""
        for group in self.groups.values():
            group.end()
        self.groups.clear()

    def _spec(self) -> TrainSpec:
        return TrainSpec(
            role="policy",
            model_dir=self.folder,
            image_root=str(self.store.root),
            micro_batch_size=8,
        )

    def point(self, curve: str, size: int) -> dict[str, bare.Timed]:
        """Seconds of each part at one point."""
        at = {"images": 1, "rollouts": ROLLOUTS, "length": LENGTH, "ranks": 1}
        at |= {
            {
                "rollouts_per_prompt": "rollouts",
                "response_length": "length",
                "images_per_prompt": "images",
                "ranks": "ranks",
            }[curve]: size
        }
        samples = prompts(self.store, at["images"])
        rows = rows_of(samples, at["rollouts"], at["length"])
        found: dict[str, bare.Timed] = {}
        if curve != "ranks":
            engine = self.session.actor("rollout")
            asked = (fixed_length, samples, at["rollouts"], at["length"])
            found["generate"] = ray.get(engine.__ray_call__.remote(*asked))
        group = self.ranks(at["ranks"])
        found["logprobs"] = self._timed(group, lambda: group.score_rows(rows))
        groups = ray.put([(row,) for row in rows])
        optimisation = replace(
            self.method.optimisation("policy"), epochs=1, minibatch_size=len(rows)
        )
        found["train"] = self._timed(
            group,
            lambda: group.ask("train", groups, self.method, optimisation, seed=0, limit="train"),
        )
        return found

    def _timed(self, group: Any, work: Callable[[], Any]) -> bare.Timed:
        def cpu() -> float:
            asked = [actor.__ray_call__.remote(bare.cpu_seconds) for actor in group.actors]
            return float(sum(ray.get(asked)))

        before, begun = cpu(), time.perf_counter()
        work()
        return {"seconds": time.perf_counter() - begun, "cpu_seconds": cpu() - before}


def measure(bench: Bench, curve: str, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """One curve: medians per point and part, and how they grow."""
    bench.point(curve, sizes[0])  # warms up
    bench.point(curve, sizes[-1])
    runs: dict[int, list[dict[str, bare.Timed]]] = {size: [] for size in sizes}
    for _ in range(repeats):
        for size in sizes:
            runs[size].append(bench.point(curve, size))
    parts = {}
    for part in runs[sizes[0]][0]:
        points = [
            {
                "size": size,
                **{
                    key: median(run[part][key] for run in runs[size])
                    for key in ("seconds", "cpu_seconds")
                },
            }
            for size in sizes
        ]
        parts[part] = {
            "points": points,
            "growth": growth(points, "seconds"),
            "cpu_growth": growth(points, "cpu_seconds"),
        }
    return {"sizes": list(sizes), "parts": parts}


def main() -> None:
    """Measure and write."""
    asked = parser(__doc__, "growth_cpu.json")
    asked.add_argument("--curves", nargs="+", default=list(CURVES), choices=list(CURVES))
    asked.add_argument("--repeats", type=int, default=3)
    options = asked.parse_args()
    curves: dict[str, Any] = {}
    result = {
        **origin("benchmarks.growth", 1),
        "model": "random LLaVA, 1.03 M parameters, float32",
        "point": {"prompts": PROMPTS, "response_length": LENGTH, "rollouts_per_prompt": ROLLOUTS},
        "repeats": options.repeats,
        "curves": curves,
    }
    with tempfile.TemporaryDirectory(prefix="quartet-growth-") as name:
        folder = Path(name)
        store = ImageStore(folder / "images")
        path = model(folder)
        with (
            Console(folder / "run.log") as console,
            Session(num_threads=1, console=console) as session,
        ):
            session.load_rollout(
                EngineSpec(
                    model_dir=path,
                    image_root=str(store.root),
                    max_model_len=POSITIONS,
                    max_images=4,
                    kv_cache_mib=512,
                )
            )
            bench = Bench(session, path, store)
            for curve in options.curves:
                curves[curve] = measure(bench, curve, CURVES[curve], options.repeats)
                bench.end_ranks()
                print(curve, json.dumps(curves[curve]["parts"]), flush=True)
                write(options.output, result)  # stays, should the rest be stopped


if __name__ == "__main__":
    main()
