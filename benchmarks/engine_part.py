"""The engine's part of `benchmarks.gpu`: parity, generate, logprobs, sync. No DeepSpeed here."""

from __future__ import annotations

import random
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.giving_back import give_back_dead
from actors.micro_batches import Forwards
from actors.modules import PolicyModule, load_vlm
from actors.scoring import score_rows
from actors.weight_sync import checkpoint_tensors, make_buckets, open_bucket
from benchmarks.cut import said
from benchmarks.flops import Work, language_flops, utilisation, vision_flops
from benchmarks.shapes import image_tokens
from cluster.planner.architectures import load_architecture
from trainers.batch import Row, encode_row
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.data.records import Sample
from trainers.data.scenes import scene_samples

BUCKET = 256 * 2**20
LARGE = 5 * 10**9
"""Parameters from which there are fewer prompts."""
TRANSPORT = "host buckets with checksums, in process"
"""How the sync that is timed here goes; CUDA IPC and NCCL need the policy's own process."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """One model in one dtype; without vLLM, or where it fails, the answers are drawn at random, and
    scored alone.
    """
    folder = Path(spec["folder"])
    store = ImageStore(folder.parent / "images")
    large = load_architecture(spec["folder"]).num_parameters >= LARGE
    prompts, tokens = (4, 16) if spec["tiny"] else (16 if large else 64, 128)
    samples = list(scene_samples(0, prompts, store.put_image))
    cell: dict[str, Any] = {}
    engine = None
    answers: list[tuple[Any, Any]] = []
    if spec["vllm"]:
        try:
            engine, answers, cell["generate"] = _generate(spec, store, samples, tokens)
        except Exception as error:  # noqa: BLE001 vLLM's are of many kinds
            cell["failure"] = f"generate: {said(error)}"
    if engine is None:
        give_back_dead()
        answers = [(ids, None) for ids in _drawn(folder, store, len(samples), tokens)]
    vlm = load_vlm(folder, DTYPES[spec["dtype"]])
    scored, cell["logprobs"] = _score(spec, vlm, store, samples, [ids for ids, _ in answers])
    if engine is None:
        return cell
    gaps = [np.abs(np.asarray(own) - s) for (_, own), s in zip(answers, scored, strict=True)]
    every = np.concatenate(gaps)
    cell["parity"] = {"mean": float(every.mean()), "max": float(every.max())}
    try:
        cell["sync"] = {"transport": TRANSPORT, **_sync(engine, vlm)}
    except Exception as error:  # noqa: BLE001 what was measured until here stays
        cell["failure"] = f"sync: {said(error)}"
    engine.close()
    return cell


def _drawn(folder: Path, store: ImageStore, number: int, tokens: int) -> list[tuple[int, ...]]:
    processing = Processing(folder, store)
    banned = {*processing.banned_ids(), processing.eos_id}
    free = [token for token in range(processing.vocab_size) if token not in banned]
    chance = random.Random(0)
    return [tuple(chance.choices(free, k=tokens)) for _ in range(number)]


def _generate(
    spec: dict[str, Any], store: ImageStore, samples: list[Sample], tokens: int
) -> tuple[Any, list[tuple[Any, Any]], dict[str, float]]:
    """The engine, its answers to the prompts, and how fast it gave them the second time."""
    from actors.engine import Engine, EngineSpec, Request

    engine = Engine(
        EngineSpec(
            model_dir=spec["folder"],
            image_root=str(store.root),
            max_model_len=1024 if spec["tiny"] else 1536,
            bf16=spec["dtype"] == "bfloat16",
            gpu_memory_utilization=0.5,
            max_num_seqs=64,
            # In float32 parity is asked for, not speed.
            eager=spec["dtype"] == "float32",
        )
    )
    requests = [Request(s.prompt, s.images, id=s.id) for s in samples]
    for seed in (0, 1):  # the first time compiles and warms up
        engine.memory.forget_requests()
        begun = time.perf_counter()
        found = engine.generate(requests, temperature=1.0, max_tokens=tokens, seed=seed)
        seconds = time.perf_counter() - begun
    answers = []
    for given in found:
        if isinstance(given, str):
            raise RuntimeError(given)
        answers.append((given[0].token_ids, given[0].logprobs))
    number = sum(len(ids) for ids, _ in answers)
    timed = {"tokens": number, "seconds": seconds, "tokens_per_second": number / seconds}
    return engine, answers, timed


def _score(
    spec: dict[str, Any],
    vlm: Any,
    store: ImageStore,
    samples: list[Sample],
    answers: list[tuple[int, ...]],
) -> tuple[list[np.ndarray], dict[str, Any]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processing = Processing(spec["folder"], store)
    module = PolicyModule(vlm, banned_ids=processing.banned_ids()).eval().to(device)
    pairs = zip(samples, answers, strict=True)
    rows = [Row.of_response(sample, tuple(ids), sample.id) for sample, ids in pairs]
    for _ in range(2):
        begun = time.perf_counter()
        with torch.no_grad():
            found = score_rows(
                module, processing, rows, Forwards(rows=16), device, lambda _: nullcontext()
            )
        seconds = time.perf_counter() - begun
    lengths = tuple(len(encode_row(row, processing).input_ids) for row in rows)
    shape = load_architecture(spec["folder"])
    work = Work(lengths, sum(map(len, answers)), len(rows) * image_tokens(spec["folder"]))
    flops = language_flops(shape, work) + vision_flops(shape, work)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return found, {
        "tokens": sum(lengths),
        "seconds": seconds,
        "tokens_per_second": sum(lengths) / seconds,
        # The peak that is known is bfloat16's.
        "mfu": utilisation(flops, seconds, name) if spec["dtype"] == "bfloat16" else None,
    }


def _sync(engine: Any, vlm: Any) -> dict[str, float]:
    """Through host memory, as `object_store` does, without Ray between; the second time."""
    for _ in range(2):
        begun = time.perf_counter()
        buckets = make_buckets(checkpoint_tensors(vlm), BUCKET)
        engine.update_weights([pair for bucket in buckets for pair in open_bucket(bucket)])
        seconds = time.perf_counter() - begun
    size = sum(array.nbytes for bucket in buckets for array in bucket.arrays)
    return {"bytes": size, "seconds": seconds, "gb_per_second": size / seconds / 1e9}
