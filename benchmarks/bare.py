"""The raw engine calls of a round, timed inside the processes that hold the engines.

Each function runs in an actor (`__ray_call__`), on the engine that the run uses and on the tensors
that the round had: whatever is not the engine's (reading images, encoding, collating, unpacking)
is done before the clock starts, or after it stops. Weights stay what they are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

Timed = dict[str, float]
"""`seconds` and `cpu_seconds` (all threads of the process), and what else was counted."""


class Stopwatch:
    """Wall and CPU seconds between its making and `read`."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self, **others: float) -> Timed:
        """Seconds so far."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {"seconds": wall, "cpu_seconds": cpu, **others}


def cpu_seconds(_actor: Any) -> float:
    """CPU seconds of this process since its start."""
    return time.process_time()


def sampling(
    engine: Any, number: int, temperature: float, max_tokens: int, *, text: bool = False
) -> Any:
    """The sampling parameters that `Engine.generate` uses; with `text` vLLM makes it, as it does
    unless it is told not to.
    """
    from vllm import SamplingParams

    return SamplingParams(
        n=number,
        detokenize=text,
        temperature=temperature,
        max_tokens=max_tokens,
        logprobs=0,
        logit_bias=dict.fromkeys(engine.processing.banned_ids(), -100.0),
    )


def answer(engine: Any, requests: Sequence[Any], params: Any, seed: int) -> tuple[Timed, Any]:
    """One `LLM.generate`, with caches as empty as at a round's start."""
    prompts = [engine.prompt_input(request) for request in requests]
    engine.memory.forget_requests()
    engine.llm.collective_rpc(seeded, args=(seed,))
    watch = Stopwatch()
    outputs = engine.llm.generate(prompts, params, use_tqdm=False)
    tokens = sum(len(one.token_ids) for output in outputs for one in output.outputs)
    timed = watch.read(tokens=float(tokens))
    engine.memory.forget_requests()
    return timed, outputs


def seeded(_worker: Any, seed: int) -> None:
    """In vLLM's worker."""
    torch.manual_seed(seed)


def generate(
    actor: Any, samples: Sequence[Any], rollout: Mapping[str, Any], seed: int, text: bool = False
) -> Timed:
    """The `generate` of vLLM on the round's prompts; with `text` as it is by default."""
    from actors.engine import Request

    number, temperature = rollout["num_rollouts_per_prompt"], rollout["temperature"]
    requests = [Request(sample.prompt, sample.images, number) for sample in samples]
    params = sampling(actor.engine, number, temperature, rollout["max_tokens"], text=text)
    return answer(actor.engine, requests, params, seed)[0]


def judge(actor: Any, items: Sequence[Any]) -> Timed:
    """The critique model: vLLM writes, the module scores; equal answers once, as in a run."""
    from actors.engine import Request
    from trainers.batch import Row, collate, encode_row

    held = actor._judge
    turns = {(held._turns(item), item.sample.images): item for item in items}
    requests = [Request(prompt, images) for prompt, images in turns]
    params = sampling(held.writer, 1, 0.0, int(held.settings["max_critique_tokens"]))
    written, outputs = answer(held.writer, requests, params, held.seed)
    rows = [
        Row(id="bare", prompt=prompt, images=images, response_ids=tuple(out.outputs[0].token_ids))
        for (prompt, images), out in zip(turns, outputs, strict=True)
    ]
    encoded = [encode_row(row, held.processing) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: len(encoded[index].input_ids))
    batches = [
        collate([rows[i] for i in part], [encoded[i] for i in part], held.processing)
        for part in chunks(order, held.batch_size)
    ]
    watch = Stopwatch()
    with torch.no_grad():
        for batch in batches:
            held.module(batch.to(held.device)).scores_B.tolist()
    scored = watch.read()
    return {key: written[key] + scored[key] for key in scored}


def chunks(order: Sequence[int], size: int) -> list[Sequence[int]]:
    """Parts of at most `size`."""
    return [order[start : start + size] for start in range(0, len(order), size)]


def logprobs(actor: Any, rows: Sequence[Any], batch_size: int = 128) -> Timed:
    """Forwards of a copy over the round's rows, without gradient."""
    from trainers.batch import collate, encode_row

    module = actor._engine if hasattr(actor, "_engine") else actor._module
    encoded = [encode_row(row, actor.processing) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: -len(encoded[index].input_ids))
    batches = [
        collate([rows[i] for i in part], [encoded[i] for i in part], actor.processing)
        for part in chunks(order, batch_size)
    ]
    watch = Stopwatch()
    with torch.no_grad():
        for batch in batches:
            outputs = module(batch.to(actor.device))
            found = outputs.values_BR if outputs.logprobs_BR is None else outputs.logprobs_BR
            found.cpu()
    return watch.read()


def train(
    actor: Any, groups: Sequence[Any], method: Any, optimisation: Any, seed: int, threads: int
) -> Timed:
    """The round's DeepSpeed steps: forward, loss, backward and step on batches that are made.

    The learning rate is 0, so that the weights stay; Adam computes all the same.
    """
    import random

    from actors.micro_batches import micro_batches
    from trainers.batch import encode_row

    torch.set_num_threads(threads)
    encoded = {id(row): encode_row(row, actor.processing) for group in groups for row in group}
    order, shuffler = list(range(len(groups))), random.Random(seed)
    steps = []
    for _ in range(optimisation.epochs):
        shuffler.shuffle(order)
        for part in chunks(order, optimisation.minibatch_size):
            chosen = [groups[index] for index in part]
            made = micro_batches(
                chosen,
                encoded,
                actor.processing,
                rank=actor.rank,
                world_size=actor.world_size,
                forwards=actor.spec.forwards(),
            )
            batches = [batch.to(actor.device) for batch, _ in made]
            totals: dict[str, float] = {}
            for batch in batches:
                for name, value in method.totals(batch).items():
                    totals[name] = totals.get(name, 0.0) + value
            steps.append((batches, totals))
    engine = actor._engine
    rates = [group["lr"] for group in engine.optimizer.param_groups]
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0
    watch = Stopwatch()
    for batches, totals in steps:
        for index, batch in enumerate(batches):
            engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            loss, _ = method.loss(actor.spec.role, engine(batch), batch, totals)
            engine.backward(loss)
            engine.step()
    timed = watch.read(steps=float(len(steps)))
    for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    torch.set_num_threads(actor.num_threads)
    return timed


def load_weights(actor: Any, buckets: Sequence[Any]) -> Timed:
    """The reload by vLLM itself of a checkpoint's tensors that are there already."""
    from actors.loading import reload
    from actors.weight_sync import open_bucket

    tensors = [pair for bucket in buckets for pair in open_bucket(bucket)]
    watch = Stopwatch()
    actor.engine.llm.collective_rpc(reload, args=(tensors,))
    timed = watch.read(bytes=float(sum(tensor.nbytes for _, tensor in tensors)))
    actor.engine.memory.forget_requests()
    return timed


def copy_in_memory(_actor: Any, buckets: Sequence[Any]) -> Timed:
    """The same bytes copied once, array by array, inside one process."""
    arrays = [array for bucket in buckets for array in bucket.arrays]
    watch = Stopwatch()
    copies = [np.array(array) for array in arrays]
    return watch.read(bytes=float(sum(array.nbytes for array in copies)))


def own_arrays(actor: Any) -> list[np.ndarray]:
    """The policy's parameters as arrays: what is to be copied."""
    tensors = actor._engine.module.vlm.state_dict().values()
    return [tensor.detach().float().cpu().numpy() for tensor in tensors]


def received(_actor: Any, arrays: Sequence[np.ndarray]) -> int:
    """Bytes that arrived, each copied out of the store once."""
    return sum(np.array(array).nbytes for array in arrays)
