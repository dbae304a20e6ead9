"""TRL's half of `benchmarks.trl_side_by_side`, run by the Python of TRL's own environment.

    python benchmarks/trl_step.py SPEC.json OUTPUT.json

Imports nothing of ours but `actors/tracker.py`, by its path, so that both sides count alike.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer import dpo_trainer, sft_trainer
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

SKIPPED = 2
"""Steps at the start that are not timed: the second is the one whose memory is counted."""


def tracker_class() -> Any:
    """`actors.tracker.StorageTracker`, without the package around it."""
    path = Path(__file__).parents[1] / "actors" / "tracker.py"
    spec = importlib.util.spec_from_file_location("tracker", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tracker"] = module
    spec.loader.exec_module(module)
    return module.StorageTracker


def add_full_head(model: Any, *_: Any, **__: Any) -> None:
    """What TRL's chunked head stands in for: all logits at once, then log-softmax."""
    original = model.forward

    def forward(
        _: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kw: Any
    ) -> Any:
        if not fused_lm_head:
            return original(*args, labels=labels, **kw)
        kw.pop("num_items_in_batch", None)
        logits = original(*args, **kw).logits[:, :-1].float()
        labels = labels[:, 1:]
        mask = labels != -100
        logprobs = logits.log_softmax(-1)
        found = logprobs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        found = found.masked_fill(~mask, 0)
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1).masked_fill(~mask, 0)
            mean = logits.mean(-1).masked_fill(~mask, 0)
            top = (logits.argmax(-1) == labels) & mask
        return FusedCausalLMOutput(
            loss=-found.sum() / mask.sum().clamp(min=1),
            log_probs=found,
            entropy=entropy,
            mean_logits=mean,
            is_top1=top,
            label_mask=mask,
        )

    model.forward = types.MethodType(forward, model)


class Meter(TrainerCallback):
    """Core-seconds and seconds of whole steps, data included, and the bytes of one."""

    def __init__(self, tracker: Any, trainer_of: Any):
        self.tracker, self.trainer_of = tracker, trainer_of
        self.times: list[tuple[float, float]] = []
        self.peak = 0
        self._begun = (time.perf_counter(), time.process_time())
        self._watch: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The second step is counted: only then are the optimiser's states there."""
        if state.global_step == SKIPPED - 1:
            trainer = self.trainer_of()
            optimizer = trainer.optimizer
            states = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
            held = {"weights": list(trainer.model.parameters()), "optimizer": states}
            if getattr(trainer, "ref_model", None) is not None:
                held["reference"] = list(trainer.ref_model.parameters())
            self._watch = self.tracker(held)
            self._watch.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step's times, once its work is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self._watch is not None:
            self._watch.__exit__(None, None, None)
            self.peak, self._watch = self._watch.peak, None
        now = (time.perf_counter(), time.process_time())
        self.times.append((now[0] - self._begun[0], now[1] - self._begun[1]))
        self._begun = now


def dataset(rows: list[dict[str, str]], task: str) -> Dataset:
    """TRL's conversational layout with images."""
    images = [[Image.open(row["image"]).convert("RGB")] for row in rows]
    prompt = [[{"role": "user", "content": row["question"]}] for row in rows]

    def answers(side: str) -> list[list[dict[str, str]]]:
        return [[{"role": "assistant", "content": row[side]}] for row in rows]

    columns = {"images": images, "prompt": prompt}
    if task == "dpo":
        columns |= {"chosen": answers("chosen"), "rejected": answers("rejected")}
    else:
        columns |= {"completion": answers("chosen")}
    return Dataset.from_dict(columns)


def run(spec: dict[str, Any], task: str, variant: str, tracker: Any) -> dict[str, Any]:
    """One trainer for a few steps."""
    torch.manual_seed(0)
    head = add_full_head if variant == "full_logits" else add_fused_lm_head
    dpo_trainer.add_fused_lm_head = sft_trainer.add_fused_lm_head = head
    rows = spec["rows"]
    common = {
        "output_dir": spec["scratch"],
        "per_device_train_batch_size": len(rows),
        "max_steps": spec["steps"] + SKIPPED,
        "learning_rate": 1e-4,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "constant",
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "logging_steps": 10**6,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "max_length": None,
        "seed": 0,
    }
    model = AutoModelForImageTextToText.from_pretrained(spec["folder"], dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(spec["folder"])
    meter = Meter(tracker, lambda: trainer)
    data = dataset(rows, task)
    if task == "dpo":
        trainer: Any = DPOTrainer(
            model,
            args=DPOConfig(beta=0.1, **common),
            train_dataset=data,
            processing_class=processor,
            callbacks=[meter],
        )
    else:
        trainer = SFTTrainer(
            model,
            args=SFTConfig(**common),
            train_dataset=data,
            processing_class=processor,
            callbacks=[meter],
        )
    batch = next(iter(trainer.get_train_dataloader()))
    tokens = int(batch["attention_mask"].sum())
    trainer.train()
    timed = meter.times[SKIPPED:]
    return {
        "task": task,
        "variant": variant,
        "tokens": tokens,
        "seconds": statistics.median(wall for wall, _ in timed),
        "core_seconds": statistics.median(core for _, core in timed),
        "peak": meter.peak,
    }


def main() -> None:
    """Every task and variant of the specification, in its order."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(spec["threads"])
    tracker = tracker_class()
    cells = [run(spec, task, variant, tracker) for task, variant in spec["cells"]]
    names = ("trl", "torch", "transformers", "accelerate")
    result = {"versions": {name: version(name) for name in names}, "cells": cells}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
