"""The sections of docs/performance.md beside TRL, and on what a step of ours is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.result import source
from benchmarks.sections_gpu import table

TARGET = (1.5, 0.8)
"""At least so many times TRL's tokens a second, at most this share of its peak."""
NAMES = {
    "equal": "as it comes",
    "full_logits": "TRL's chunked head off",
}
EXPLANATION = """What the difference is made of, by the source of both (parts of ours are measured below, parts of TRL's were not):

* **Head.** TRL 1.16 takes log-probabilities in chunks of 32,768 tokens, and has no switch for it; "off" is the same trainer
  with all logits at once, as it was before. On a GPU with Triton it scores labelled tokens only, as we do; without Triton, as
  here, it scores every position, prompts and image tokens too. We apply the head to target tokens, 512 at a time, everywhere. What
  that saves grows with the vocabulary: next to nothing with the drawn world's forty words, most of the peak with 32,064.
* **Metrics.** TRL computes entropy, mean logits and top-1 accuracy of every token in every step; we compute what the loss needs.
* **Data.** Both process images and texts anew in every step. TRL processes a pair's image for each of its sides; we keep it by its content, once.
* **Reference.** Its copy is the same size on both sides, and scored in the step.
* **Page faults.** Our processes have malloc keep the memory of large tensors; "malloc alike" is the ratio to a TRL process that was told the
  same. With a large vocabulary it is a good part of the difference on a CPU; a GPU's tensors do not come from malloc.
* **Engine.** We go through DeepSpeed at one rank, TRL through Accelerate without it: a cost per step of ours, measured
  below against plain torch.
"""


def lines(result: Mapping[str, Any]) -> list[str]:
    """Markdown: tokens a second and peaks side by side, and where the target is met."""
    rows = []
    for model in result["models"]:
        ours = {c["task"]: c for c in model["cells"]["ours"] if c["variant"] == "equal"}
        for theirs, kept in zip(model["cells"]["trl"], model["cells"]["trl_kept"], strict=True):
            task, variant = theirs["task"], theirs["variant"]
            own = ours[task]
            speed = own["tokens_per_second"] / theirs["tokens_per_second"]
            alike = own["tokens_per_second"] / kept["tokens_per_second"]
            share = own["peak"] / theirs["peak"]
            met = [
                "yes" if speed >= TARGET[0] else "no",
                "yes" if share <= TARGET[1] else "no",
            ]
            rows.append(
                [
                    model["model"],
                    task,
                    NAMES[variant],
                    f"{own['tokens_per_second']:,.0f}",
                    f"{theirs['tokens_per_second']:,.0f}",
                    f"{speed:.2f} ({met[0]})",
                    f"{alike:.2f}",
                    f"{own['peak'] / 1e6:.0f}",
                    f"{theirs['peak'] / 1e6:.0f}",
                    f"{share:.2f} ({met[1]})",
                ]
            )
    versions = result["models"][0]["versions"]
    sides = "; ".join(
        f"{side}: " + ", ".join(f"{name} {number}" for name, number in found.items())
        for side, found in versions.items()
    )
    head = (
        "model",
        "step",
        "TRL",
        f"ours, tokens per {result['clock'].rstrip('s')}",
        "TRL's",
        f"ratio (at least {TARGET[0]})",
        "ratio, malloc alike",
        "our peak, MB",
        "TRL's",
        f"share (at most {TARGET[1]})",
    )
    return [
        "## Beside TRL",
        "",
        (
            f"{result['kind'].capitalize()} by `{result['command']}` on {result['device']}: the same model "
            "folder, images, texts, batch, float32, AdamW, one thread, no gradient checkpointing; whole steps, data included, "
            f"processes in turn, medians. Steps of {result['load']['pairs']} pairs (SFT: rows) with answers of "
            f"{result['load']['sequence']} words. Peaks are of tensor storages, counted by one tracker on both sides. {sides}."
        ),
        "",
        *table(head, rows),
        EXPLANATION,
    ]


def parts(data: Mapping[str, Any]) -> list[str]:
    """Markdown: what a step of ours is made of."""
    rows = []
    for cell in data["cells"]:
        spent = cell[data["clock"]]
        more = spent["engine"] - spent["torch"]
        rows.append(
            [
                cell["model"],
                cell["task"],
                *(f"{1000 * spent[name]:.0f}" for name in ("whole", "data", "engine", "torch")),
                f"{1000 * more:+.0f} ({more / spent['whole']:+.0%})",
            ]
        )
    unit = data["clock"].replace("_", "-")
    gap = max(
        abs(cell["losses"]["engine"][1] - cell["losses"]["torch"][1]) for cell in data["cells"]
    )
    return [
        "### What a step of ours is made of",
        "",
        (
            f"Thousandths of {unit}, medians of {data['load']['turns']} steps of each side in turn, in one process: the whole step "
            "(without DPO's reference), the processing of its rows and images, DeepSpeed's forward, backward, clipping and AdamW on a "
            "batch that is made, and the same by torch alone. In brackets the engine's surplus as a share of the whole. From the "
            f"same weights both took the same steps: their last losses differ by {gap:.0e} at most."
        ),
        "",
        *table(
            ["model", "step", "whole", "data", "DeepSpeed", "torch", "DeepSpeed - torch"],
            rows,
        ),
        source(data),
    ]
