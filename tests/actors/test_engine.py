"""The real vLLM engine against the real trainer, each in its own Ray actor."""

from __future__ import annotations

import numpy as np
import pytest
import ray
import torch

from trainers.batch import Row
from trainers.data.noise import ImageNoise
from trainers.data.records import Sample, Turn

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]
MAX_MODEL_LEN = 128


class Stack:
    """Trainer and engine over the tiny model; `use` brings other weights through the trainer."""

    def __init__(self, session, model_dir: str, image_root: str):
        self.session, self.image_root = session, image_root
        self.rollout = session.actor("rollout")
        self.load_rollout(model_dir)
        self.load_trainer(model_dir)

    def load_rollout(self, model_dir: str) -> None:
        from actors.engine import EngineSpec

        spec = EngineSpec(
            model_dir=model_dir, image_root=self.image_root, max_model_len=MAX_MODEL_LEN
        )
        ray.get(self.rollout.load.remote(spec))

    def load_trainer(self, model_dir: str) -> None:
        from actors.train_spec import TrainSpec

        spec = TrainSpec(role="policy", model_dir=model_dir, image_root=self.image_root)
        self.session.load_trainer("policy", spec)

    def use(self, model_dir: str) -> int:
        self.load_trainer(model_dir)
        buckets = self.session.trainer("policy").call("weight_buckets", 2**18)[0]
        return ray.get(self.rollout.update_weights.remote(buckets))

    def generate(self, samples, number=1, *, temperature=1.0, max_tokens=16, seed=0):
        return ray.get(
            self.rollout.generate.remote(
                samples,
                num_rollouts_per_prompt=number,
                temperature=temperature,
                max_tokens=max_tokens,
                seed=seed,
            )
        )

    def gap(self, samples, rollouts, noise_step: int | None = None) -> float:
        """Mean |engine logprob - trainer logprob|."""
        by_id = {sample.id: sample for sample in samples}
        rows = [Row.of_response(by_id[r.sample_id], r.token_ids, r.id) for r in rollouts]
        for row, rollout in zip(rows, rollouts, strict=True):
            if noise_step is not None:
                row.noise = ImageNoise(noise_step, rollout.sample_id)
        trained = self.session.trainer("policy").score_rows(rows)
        pairs = zip(rollouts, trained, strict=True)
        return float(np.concatenate([np.abs(np.array(r.logprobs) - t) for r, t in pairs]).mean())


@pytest.fixture(scope="module")
def stack(shared_session, tiny_model, store) -> Stack:
    return Stack(shared_session, tiny_model, str(store.root))


@pytest.fixture(scope="module")
def other_weights(tiny_model, tmp_path_factory):
    """`other_weights(only=...)`: a folder with noise on every parameter that `only` accepts."""
    from actors.modules import load_vlm
    from trainers.data.drawn_model import build_processor, save_pretrained_folder

    def make(only=lambda name: True, seed: int = 1) -> str:
        folder = tmp_path_factory.mktemp("other")
        vlm = load_vlm(tiny_model)
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in vlm.named_parameters():
                if only(name):
                    parameter += 0.05 * torch.randn_like(parameter)
        save_pretrained_folder(vlm, build_processor(), folder)
        return str(folder)

    return make


def test_engine_and_trainer_agree_before_any_sync(stack, tiny_model, samples):
    stack.load_trainer(tiny_model)
    rollouts, dropped = stack.generate(samples, 2)
    assert not dropped and len(rollouts) == 2 * len(samples)
    assert stack.gap(samples, rollouts) < 1e-4


def test_they_agree_after_every_parameter_changed(stack, samples, other_weights):
    before, _ = stack.generate(samples)  # fills the caches with the old policy's keys and values
    version = stack.use(other_weights())
    rollouts, _ = stack.generate(samples)
    assert {rollout.policy_version for rollout in rollouts} == {version}
    assert stack.gap(samples, rollouts) < 1e-4
    # and the old responses are not those of the new policy
    assert stack.gap(samples, before) > 1e-3


def test_the_vision_tower_alone_changes_what_is_seen(stack, tiny_model, samples, other_weights):
    stack.use(tiny_model)
    before, _ = stack.generate(samples, temperature=1.0, max_tokens=4)
    stack.use(other_weights(lambda name: "vision_tower" in name))
    after, _ = stack.generate(samples, temperature=1.0, max_tokens=4)
    assert stack.gap(samples, after) < 1e-4
    # the same images: a stale encoder or prefix cache would give the same first token's logprob
    first = [(old.logprobs[0], new.logprobs[0]) for old, new in zip(before, after, strict=True)]
    assert all(abs(old - new) > 1e-6 for old, new in first)


def test_missing_and_unknown_names_are_refused(stack, tiny_model, samples):
    from actors.modules import load_vlm
    from actors.weight_sync import checkpoint_tensors, make_buckets

    version = stack.use(tiny_model)
    tensors = list(checkpoint_tensors(load_vlm(tiny_model)))
    for wrong in (tensors[1:], [*tensors, ("model.adapter.weight", torch.zeros(1))]):
        name = tensors[0][0] if len(wrong) < len(tensors) else "model.adapter.weight"
        with pytest.raises(RuntimeError, match=name):
            ray.get(stack.rollout.update_weights.remote(make_buckets(wrong, 2**20)))
    rollouts, _ = stack.generate(samples[:2])
    assert rollouts[0].policy_version == version
    assert stack.gap(samples, rollouts) < 1e-4


def test_no_banned_token_is_ever_sampled(stack, processing, samples):
    # At temperature 2 (the most that vLLM allows) every token of a random model has a fair chance.
    rollouts, _ = stack.generate(samples, 16, temperature=2.0, max_tokens=40)
    seen = {token for rollout in rollouts for token in rollout.token_ids}
    assert sum(len(rollout.token_ids) for rollout in rollouts) > 3000
    assert not seen & set(processing.banned_ids())
    assert len(seen) > 0.9 * (processing.vocab_size - len(processing.banned_ids()))
    for rollout in rollouts:
        assert len(rollout.logprobs) == len(rollout.token_ids)
        assert max(rollout.logprobs) <= 0.0
        stopped = rollout.token_ids[-1] == processing.eos_id
        assert stopped == (rollout.finish_reason == "stop")
        assert processing.eos_id not in rollout.token_ids[:-1]


def test_what_does_not_fit_gives_its_reason_and_the_rest_goes_on(stack, samples):
    long = Sample(
        id="long",
        prompt=(Turn(role="user", text="red " * MAX_MODEL_LEN, num_images=1),),
        images=samples[0].images,
    )
    lost = Sample(id="lost", prompt=samples[0].prompt, images=("0" * 64,))
    rollouts, dropped = stack.generate([samples[0], long, lost, samples[1]])
    assert [rollout.sample_id for rollout in rollouts] == [samples[0].id, samples[1].id]
    reasons = {item.sample_id: item.reason for item in dropped}
    assert f"exceed rollout.max_model_len={MAX_MODEL_LEN}" in reasons["long"]
    assert "is not in" in reasons["lost"]


def test_equal_seeds_give_equal_responses(stack, samples):
    def ids(seed: int):
        return [rollout.token_ids for rollout in stack.generate(samples, 2, seed=seed)[0]]

    assert ids(7) == ids(7)
    assert ids(7) != ids(8)
    # The responses to one prompt differ by chance.
    first = ids(7)
    assert sum(a != b for a, b in zip(first[::2], first[1::2], strict=True)) > len(samples) // 2


def test_prompt_tokens_are_counted_after_expansion(stack, processing, samples):
    rollouts, _ = stack.generate(samples[:1])
    encoded = processing.encode("", samples[0].prompt, samples[0].images, response_ids=())
    assert rollouts[0].prompt_tokens == len(encoded.input_ids)


@pytest.mark.parametrize("step", [500, 900])
def test_the_distorted_tensor_reaches_the_model_unclipped(stack, tiny_model, samples, step):
    stack.use(tiny_model)
    stack.generate(samples)  # the clean images are in the engine's caches
    rollouts, dropped = ray.get(
        stack.rollout.generate.remote(
            samples,
            num_rollouts_per_prompt=2,
            temperature=1.0,
            max_tokens=16,
            seed=0,
            noise_step=step,
        )
    )
    assert not dropped and {rollout.source for rollout in rollouts} == {"noisy"}
    # The same tensor in engine and trainer, and not the clean one.
    assert stack.gap(samples, rollouts, step) < 1e-4
    assert stack.gap(samples, rollouts) > 1e-2


def test_a_given_answer_is_what_a_policy_would_have_sampled(stack, tiny_model, samples):
    stack.use(tiny_model)
    rollouts, _ = stack.generate(samples, 2)
    by_id = {sample.id: sample for sample in samples}
    whole = [r for r in rollouts if r.finish_reason == "stop" and r.text]
    given = [(by_id[r.sample_id], r.text) for r in whole]
    encoded, dropped = ray.get(stack.rollout.encode_answers.remote(given, "data"))
    assert whole and not dropped
    assert [r.token_ids for r in encoded] == [r.token_ids for r in whole]
    assert [r.prompt_tokens for r in encoded] == [r.prompt_tokens for r in whole]
    assert all(r.source == "data" and r.logprobs == () for r in encoded)
    lost = Sample(id="lost", prompt=samples[0].prompt, images=("0" * 64,))
    bad = [(samples[0], "red <image>"), (lost, "red"), (samples[1], "red " * MAX_MODEL_LEN)]
    encoded, dropped = ray.get(stack.rollout.encode_answers.remote(bad, "data"))
    assert not encoded
    assert ["data answer: " in item.reason for item in dropped] == [True] * 3


def test_a_segment_is_sampled_anew_between_what_stays(stack, tiny_model, samples):
    from actors.answers import SegmentSettings

    stack.use(tiny_model)
    text = "top-left red circle . top-right blue square . bottom-left green cross ."
    given, _ = ray.get(stack.rollout.encode_answers.remote([(s, text) for s in samples], "data"))
    settings = SegmentSettings(max_tokens=4, temperature=1.0, top_p=1.0, top_k=0)
    pairs = list(zip(samples, given, strict=True))
    spliced, dropped = ray.get(stack.rollout.resample_segments.remote(pairs, settings, ""))
    assert not dropped
    changed = 0
    for before, after in zip(given, spliced, strict=True):
        old, new = before.token_ids, after.token_ids
        same_head = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), len(new))  # noqa: B905
        same_tail = next(
            (i for i, (a, b) in enumerate(zip(old[::-1], new[::-1])) if a != b),  # noqa: B905
            len(new),
        )
        # A and C stay, at most 4 tokens between them differ, and none is added.
        assert len(old) - 4 <= len(new) <= len(old)
        assert same_head + same_tail >= len(old) - 4 and same_tail >= 1
        assert after.source == "segment" and after.finish_reason == "stop"
        changed += old != new
    assert changed > len(samples) // 2


def test_memory_is_counted(stack):
    memory = ray.get(stack.rollout.memory.remote())
    assert memory["kv_cache"] > 0
    assert memory["weights"] + memory.get("packed_weights", 0) > 3_000_000


def test_another_engine_in_the_same_process(stack, tiny_model, samples):
    # vLLM's groups are the process's: what is left of the first engine must not take them down.
    stack.load_rollout(tiny_model)
    stack.load_trainer(tiny_model)
    for seed in range(2):
        rollouts, _ = stack.generate(samples, seed=seed)
        assert stack.gap(samples, rollouts) < 1e-4
        assert {rollout.policy_version for rollout in rollouts} == {0}


def test_the_engine_says_what_vllm_made_of_its_settings(stack):
    conditions = ray.get(stack.rollout.conditions.remote())
    assert (conditions.dtype, conditions.max_model_len) == ("float32", MAX_MODEL_LEN)
    assert conditions.max_num_seqs == 256
    kinds = ray.get(stack.rollout.memory.remote())
    # Keys and values of 3 layers of width 128 in float32 for every token that fits.
    assert conditions.kv_cache_tokens * 2 * 3 * 128 * 4 == kinds["kv_cache"]
