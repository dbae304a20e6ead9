"""Writes docs/memory.md: what each method needs, planned for real models and measured on a CPU.

    python benchmarks/memory_table.py            # about ten minutes on two cores, 1 GiB

The measured half is read from benchmarks/memory_cpu.json, which `quartet bench memory` wrote.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from cluster.bench_table import fits, static
from cluster.planner.architectures import load_architecture
from cluster.planner.gpus import find_gpu
from cluster.planner.plan import MethodPlan, Planner
from cluster.planner.settings import Settings
from trainers.config import METHODS as CONFIGS
from trainers.registry import make_method

ROOT = Path(__file__).parents[1]
MODELS = (
    "smolvlm2-500m",
    "smolvlm2-2.2b",
    "qwen2.5-vl-3b",
    "llava-1.5-7b",
    "qwen2.5-vl-7b",
    "qwen3-vl-8b",
    "llava-1.5-13b",
    "qwen2.5-vl-32b",
)
METHODS = ("ppo", "dpo", "nsft")
SETTINGS = Settings(sleep=True)
REGIMES = {
    "full": SETTINGS,
    "LoRA 64": replace(SETTINGS, lora_rank=64),
    "full, optimiser on the host": replace(SETTINGS, optimizer_device="cpu"),
    "full, one copy at a time": replace(SETTINGS, time_slice=True),
}
OWN_KINDS = ("weights", "gradients", "optimizer", "masters")
HEAD = """# Memory: what each copy costs

What "PPO needs four models, DPO two, nSFT one" means in bytes. Written by `python benchmarks/memory_table.py`; each
table says whether its figures are predicted, traced or measured, and on what.

* **predicted**: arithmetic from the shapes of the real modules (weights, gradients, optimiser states, masters, KV cache).
  For tiny models these equal the bytes that DeepSpeed holds, to the byte (`tests/cluster/planner/test_static_measured.py`).
* **traced**: activations and logits of the real forward and backward on fake tensors; the vision tower by a formula.
  Within 10 % of the same step on real tensors (`tests/cluster/planner/test_trace.py`).
* **measured**: tensor storages that were alive, counted in a real step (`actors/tracker.py`).

`quartet plan --model M --gpu G` answers for other models, cards and settings; `quartet bench memory` measures; every run
writes `memory/ledger.jsonl`.

## Where 4 : 2 : 1 holds, and where it does not

The number of copies is 4 : 2 : 1. Bytes that stay are in that ratio only where all copies cost alike, and a trained copy
costs more than a frozen one: in bfloat16 with AdamW 16 bytes a parameter (weights 2, gradients 2, masters 4, moments 8)
against 2. So PPO holds 16 + 16 + 2 + 2 = 36, DPO 16 + 2 = 18, nSFT 16: **2.25 : 1.13 : 1**. With adapters the trained
copies cost about 2, too: 8, 4 and 2, **4 : 2 : 1** (less at rank 64, as adapters are not nothing). With DeepSpeed's
optimiser on the host the gradients go there, too, and a trained copy keeps only its weights on the device: 4 : 2 : 1
again. Activations, which grow with the batch, come on top of each trained copy: PPO has two of them, DPO and nSFT one.
"""


def plans(planner: Planner) -> dict[tuple[str, str], MethodPlan]:
    """Regime and method -> the smallest number of 80 GB cards that fits."""
    return {
        (regime, name): planner.plan(make_method(CONFIGS[name]()), settings)
        for regime, settings in REGIMES.items()
        for name in METHODS
    }


def own_bytes(planner: Planner) -> list[str]:
    """A line of the table of bytes that stay, one GPU, nothing sharded."""
    cells = []
    for settings in (
        replace(SETTINGS, zero_stage=0, sleep=False),
        replace(SETTINGS, zero_stage=0, sleep=False, lora_rank=64),
    ):
        sizes = []
        for name in METHODS:
            plan = planner.plan(make_method(CONFIGS[name]()), settings, 1)
            own = [kinds for copy, kinds in plan.phases["train"].items() if copy in plan.copies]
            sizes.append(sum(kinds.get(kind, 0) for kinds in own for kind in OWN_KINDS))
        cells += [f"{size / 1e9:.1f}" for size in sizes]
        cells.append(" : ".join(f"{size / sizes[-1]:.2f}" for size in sizes))
    return cells


def measured() -> list[str]:
    """Lines of the table that was measured on a CPU."""
    result = json.loads((ROOT / "benchmarks" / "memory_cpu.json").read_text(encoding="utf-8"))
    lines = [
        "## Measured: the built-in models on a CPU",
        "",
        "`quartet bench memory --models drawn drawn-wide --output benchmarks/memory_cpu.json`: "
        f"{result['device']}, "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + f", float32, {result['load']['batch']} responses of {result['load']['sequence']} tokens a "
        "step. In float32 a trained copy needs no masters: 16 bytes against 4, so the ratio is "
        "2.5 : 1.25 : 1. `plan` is what the planner says of the same step, against the measured peak. "
        "nSFT learns from its correction turns beside the chosen answers, as many rows as DPO.",
        "",
        "| model | regime | method | stay, MB | ratio | peak, MB | ratio | plan |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in filter(fits, result["cells"]):
        same = [
            c
            for c in filter(fits, result["cells"])
            if (c["model"], c["regime"]) == (cell["model"], cell["regime"])
        ]
        base = next(c for c in same if c["method"] == "nsft")
        lines.append(
            f"| {cell['model']} | {cell['regime']} | {cell['method']} | {static(cell) / 1e6:.1f} "
            f"| {static(cell) / static(base):.2f} | {cell['peak'] / 1e6:.1f} "
            f"| {cell['peak'] / base['peak']:.2f} | {cell['planned_peak'] / cell['peak'] - 1:+.1%} |"
        )
    return lines


def main() -> None:
    """Plan everything and write the page."""
    planners = {model: Planner(load_architecture(model), find_gpu("h100")) for model in MODELS}
    lines = [
        HEAD,
        "## Predicted: bytes that stay in the training step",
        "",
        (
            "All copies of the method on one device, bfloat16, nothing sharded, GB (10⁹ bytes); LoRA of "
            "rank 64 on the language model."
        ),
        "",
        "| model | PPO | DPO | nSFT | ratio | LoRA: PPO | DPO | nSFT | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, planner in planners.items():
        print(model, file=sys.stderr, flush=True)
        lines.append(f"| {model} | {' | '.join(own_bytes(planner))} |")
    lines += [
        "",
        "## Predicted and traced: cards of 80 GB",
        "",
        (
            "The smallest number of H100 that the whole loop fits on, and in brackets the peak of the fullest, GB: ZeRO-3, "
            "bfloat16, gradient checkpointing, micro-batches of 2 rows, prompts of one image and 128 "
            "tokens, responses of 512, engines asleep while others work (`rollout.sleep`). Frozen copies and engines are "
            "whole on one card, so a model whose weights alone need more than a card fits nowhere (-)."
        ),
        "",
        "| model | regime | PPO | DPO | nSFT |",
        "|---|---|---|---|---|",
    ]
    for model, planner in planners.items():
        print(model, file=sys.stderr, flush=True)
        found = plans(planner)
        for regime in REGIMES:
            cells = [
                "-"
                if (plan := found[regime, name]).min_gpus is None
                else f"{plan.min_gpus} ({plan.peak_bytes_per_gpu / 1e9:.0f})"
                for name in METHODS
            ]
            lines.append(f"| {model} | {regime} | {' | '.join(cells)} |")
    lines += ["", *measured(), ""]
    (ROOT / "docs" / "memory.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
