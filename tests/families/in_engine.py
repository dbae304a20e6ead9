"""One family in the real vLLM engine against the module that is trained, in a process of its own.

    python -m tests.families.in_engine FINAL RELEASED IMAGES PROMPTS RESULTS

FINAL is a folder that a trainer exported from RELEASED, PROMPTS a pickle of samples, IMAGES the
root of their store. Every check is an assertion; what was measured goes to RESULTS as JSON. A
process of its own gives its memory back, and never has DeepSpeed in it.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.engine import EngineSpec
from actors.engine_adapter import TOWERS
from actors.lora import adapters_off, add_adapters
from actors.micro_batches import Forwards
from actors.modules import PolicyModule, load_vlm
from actors.rollout import RolloutActor
from actors.scoring import score_rows
from actors.vllm_api import serves_towers, vllm_version
from actors.weight_sync import checkpoint_tensors, make_buckets
from tests.families.steps import TOWER_LEFT_OUT
from trainers.batch import Row
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.data.records import Rollout, Sample

MAX_GAP = 1e-5
"""Between a token's logprob in engine and trainer, float32."""
RANK = 4
NOT_SERVED = ("llava_onevision",)
"""Families that vLLM has no adapters for."""
NOT_SERVED_BY_OLDER = (*NOT_SERVED, "llava_next")
"""The same of vLLM 0.24, as far as was tried."""


class Pair:
    """A family's engine and module over one folder."""

    def __init__(self, folder: str, image_root: str, samples: Sequence[Sample]):
        self.samples = samples
        self.engine = RolloutActor(num_threads=1)
        self.spec = EngineSpec(
            model_dir=folder,
            image_root=image_root,
            max_model_len=512,
            max_images=3,
            max_num_seqs=16,
            kv_cache_mib=32,
        )
        self.engine.load(self.spec)
        self.processing = Processing(folder, ImageStore(image_root))
        self.vlm = load_vlm(folder)

    def generate(
        self, number: int = 2, temperature: float = 1.0, tokens: int = 12
    ) -> list[Rollout]:
        """Responses to all samples; none is dropped."""
        rollouts, dropped = self.engine.generate(
            self.samples,
            num_rollouts_per_prompt=number,
            temperature=temperature,
            max_tokens=tokens,
            seed=0,
        )
        assert not dropped, dropped
        return rollouts

    def gap(self, rollouts: Sequence[Rollout]) -> float:
        """Largest |engine logprob - trainer logprob| of any token."""
        by_id = {sample.id: sample for sample in self.samples}
        rows = [Row.of_response(by_id[r.sample_id], r.token_ids, r.id) for r in rollouts]
        module = PolicyModule(self.vlm, banned_ids=self.processing.banned_ids()).train()
        with torch.no_grad():
            values = score_rows(
                module,
                self.processing,
                rows,
                Forwards(rows=32),
                torch.device("cpu"),
                lambda _: nullcontext(),
            )
        pairs = zip(rollouts, values, strict=True)
        return max(float(np.abs(np.array(r.logprobs) - theirs).max()) for r, theirs in pairs)

    def sync(self, tensors: Iterable[tuple[str, Any]] | None = None) -> int:
        """The module's weights, or `tensors`, into the engine."""
        return self.engine.update_weights(
            make_buckets(tensors or checkpoint_tensors(self.vlm), 2**18)
        )

    def perturb(self, only: Callable[[str], bool] = lambda _: True) -> None:
        """Noise on every parameter that `only` accepts."""
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in self.vlm.named_parameters():
                if only(name):
                    parameter += 0.05 * torch.randn_like(parameter)


def before_any_sync(pair: Pair) -> tuple[float, list[Rollout]]:
    """One image of each size, none, several: equal prompts, equal logprobs."""
    rollouts = pair.generate()
    assert {r.sample_id for r in rollouts} == {sample.id for sample in pair.samples}
    lengths = {
        sample.id: len(
            pair.processing.encode("", sample.prompt, sample.images, response_ids=()).input_ids
        )
        for sample in pair.samples
    }
    assert all(r.prompt_tokens == lengths[r.sample_id] for r in rollouts)
    gap = pair.gap(rollouts)
    assert gap < MAX_GAP, gap
    return gap, rollouts


def the_tower_alone(pair: Pair, before: Sequence[Rollout]) -> None:
    """The same image gives other logits after the tower changed, and text alone the same."""
    pair.perturb(lambda name: "vision" in name or "visual" in name)
    version = pair.sync()
    after = pair.generate()
    assert {r.policy_version for r in after} == {version}
    assert pair.gap(after) < MAX_GAP
    assert pair.gap([r for r in before if r.sample_id == "none"]) < MAX_GAP
    for sample in pair.samples:
        if sample.images:
            assert pair.gap([r for r in before if r.sample_id == sample.id]) > 1e-3, sample.id


def every_parameter(pair: Pair, before: Sequence[Rollout]) -> float:
    """Agreement after all changed; the old answers are not the new policy's."""
    pair.perturb()
    pair.sync()
    gap = pair.gap(pair.generate())
    assert gap < MAX_GAP, gap
    assert pair.gap(before) > 1e-2
    return gap


def no_placeholder_is_sampled(pair: Pair) -> None:
    """However flat the distribution."""
    hot = pair.generate(8, temperature=2.0, tokens=32)
    sampled = {token for rollout in hot for token in rollout.token_ids}
    assert not sampled & set(pair.processing.banned_ids())


def a_stale_parameter_is_refused(pair: Pair) -> None:
    """By its name, before anything is loaded."""
    tensors = list(checkpoint_tensors(pair.vlm))
    for left_out in (0, len(tensors) - 1):
        name = tensors[left_out][0]
        with pytest.raises(RuntimeError, match=re.escape(name)):
            pair.sync(tensors[:left_out] + tensors[left_out + 1 :])


def adapters(pair: Pair, released: str, base: Sequence[Rollout]) -> float:
    """Adapters on the language model, then on everything: merged on the way, off the base."""
    gap = 0.0
    for vision in (False, True):
        pair.vlm = load_vlm(released)
        add_adapters(pair.vlm, rank=RANK, vision=vision)
        pair.perturb(lambda name: "lora_" in name)
        pair.sync()
        rollouts = pair.generate()
        gap = max(gap, pair.gap(rollouts))
        assert gap < MAX_GAP, gap
        with adapters_off(pair.vlm):
            assert pair.gap(base) < MAX_GAP  # the exported base, to rounding
            assert pair.gap(rollouts) > 1e-3
    return gap


def served_adapter(pair: Pair, released: str, *, vision: bool) -> float | str:
    """An adapter alone, beside the base of the engine's folder; then another, and plain weights."""
    family = pair.processing.config.model_type
    spec = replace(pair.spec, lora_rank=RANK, lora_vision=vision)
    older = not serves_towers(vllm_version())
    not_served, towers = (NOT_SERVED_BY_OLDER, ()) if older else (NOT_SERVED, TOWERS)
    if family in not_served or (vision and family not in towers):
        with pytest.raises(UserError, match=r"train\.lora_sync=merged"):
            pair.engine.load(spec)
        return "refused"
    pair.engine.load(spec)
    pair.vlm = load_vlm(released)
    add_adapters(pair.vlm, rank=RANK, vision=vision)
    gap, before = 0.0, pair.generate()
    for _ in range(2):
        pair.perturb(is_learned)
        version = pair.sync(checkpoint_tensors(pair.vlm, adapters="alone"))
        rollouts = pair.generate()
        assert {r.policy_version for r in rollouts} == {version}
        gap = max(gap, pair.gap(rollouts))
        assert gap < MAX_GAP, gap
        assert pair.gap(before) > 1e-3
        before = rollouts
    alone = list(checkpoint_tensors(pair.vlm, adapters="alone"))
    for some in (alone[2:], alone[1:]):  # a layer without, and one with B alone
        with pytest.raises(RuntimeError, match="does not fit the engine's layers; missing"):
            pair.sync(some)
    for how in ("beside", "merged"):
        # Anew: changes on changes make logits, and their rounding, ever larger.
        pair.vlm = load_vlm(released)
        add_adapters(pair.vlm, rank=RANK, vision=vision)
        pair.perturb(lambda name: "lora_" not in name or is_learned(name))
        pair.sync(checkpoint_tensors(pair.vlm, adapters=how))
        gap = max(gap, pair.gap(pair.generate()))
        assert gap < MAX_GAP, gap
    return gap


def is_learned(name: str) -> bool:
    """Whether this is of an adapter that a loss reaches."""
    unread = "vision" in name and any(part in name for part in TOWER_LEFT_OUT)
    return "lora_" in name and not unread


def main(final: str, released: str, image_root: str, prompts: str, results: str) -> None:
    """All checks, in an order in which each leaves the engine fit for the next."""
    pair = Pair(final, image_root, pickle.loads(Path(prompts).read_bytes()))
    parity, base = before_any_sync(pair)
    the_tower_alone(pair, base)
    sync = every_parameter(pair, base)
    no_placeholder_is_sampled(pair)
    a_stale_parameter_is_refused(pair)
    lora = adapters(pair, released, base)
    served = served_adapter(pair, released, vision=False)
    seen = served_adapter(pair, released, vision=True)
    assert "deepspeed" not in sys.modules
    measured = {"parity": parity, "sync": sync, "LoRA": lora}
    measured |= {"adapter": served, "with tower": seen}
    Path(results).write_text(json.dumps(measured))


if __name__ == "__main__":
    main(*sys.argv[1:])
