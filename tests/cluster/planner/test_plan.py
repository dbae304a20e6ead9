"""Plans by hand: bytes per parameter of each method, and what switches change."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace

import pytest

from cluster.cli import build_parser, main
from cluster.planner import copy_plan
from cluster.planner.architectures import load_architecture
from cluster.planner.copies import copy_tensors
from cluster.planner.gpus import find_gpu
from cluster.planner.options import settings_of
from cluster.planner.plan import Planner, total
from cluster.planner.settings import Settings
from trainers.config import METHODS as CONFIGS
from trainers.registry import make_method

METHODS = {name: make_method(config()) for name, config in CONFIGS.items()}
ONE = Settings(zero_stage=0, micro_batch_size=1, response_tokens=64)
SMALL = ("--model", "smolvlm2-256m")
ONE_SEQUENCE = Settings(max_num_seqs=1)
STATIC = ("weights", "gradients", "optimizer", "masters")


@pytest.fixture(scope="module")
def planner(tiny_model):
    return Planner(load_architecture(tiny_model), find_gpu("h100"))


def per_parameter(planner, name, settings):
    """Bytes per parameter that the method's own copies hold in the training step."""
    plan = planner.plan(METHODS[name], settings, 1)
    own = [copies for copy, copies in plan.phases["train"].items() if copy in plan.copies]
    size = sum(kinds.get(kind, 0) for kinds in own for kind in STATIC)
    return size / planner.architecture.num_parameters


@pytest.mark.parametrize(
    ("name", "expected"), [("ppo", 36), ("grpo", 20), ("dpo", 18), ("nsft", 16)]
)
def test_full_fine_tuning_costs_16_bytes_for_a_trained_copy_and_2_for_a_frozen(
    planner, name, expected
):
    # the critic lacks the language head, heads and paddings add a trifle
    assert per_parameter(planner, name, ONE) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(("name", "expected"), [("ppo", 8), ("dpo", 4), ("nsft", 2)])
def test_with_adapters_the_ratio_is_that_of_the_copies(planner, name, expected):
    settings = replace(ONE, lora_rank=1)
    assert per_parameter(planner, name, settings) == pytest.approx(expected, rel=0.06)


def test_frozen_parts_cost_their_weights_alone(planner):
    seen = sum(each.numel for each in planner.architecture.parameters if each.part == "vision")
    vision = seen / planner.architecture.num_parameters
    for frozen, share in ((("language",), vision), (("vision", "projector"), 1 - vision)):
        settings = replace(ONE, freeze=frozen)
        expected = 16 * share + 2 * (1 - share)
        assert per_parameter(planner, "nsft", settings) == pytest.approx(expected, rel=0.01)
        # the frozen copy of DPO was frozen anyway
        assert per_parameter(planner, "dpo", settings) == pytest.approx(expected + 2, rel=0.01)


def test_a_frozen_language_model_keeps_the_way_back_to_the_image(planner):
    def activations(*frozen: str) -> int:
        settings = replace(ONE, freeze=frozen, gradient_checkpointing=False)
        return planner.plan(METHODS["nsft"], settings, 1).phases["train"]["policy"]["activations"]

    # Inputs of its layers are not kept, as no weight of theirs learns; the rest of the way is.
    assert 0.3 * activations() < activations("language") < activations()
    assert activations("vision") < activations()


def test_adapter_off_saves_one_copy(planner):
    own = per_parameter(planner, "ppo", replace(ONE, lora_rank=1))
    off = per_parameter(planner, "ppo", replace(ONE, lora_rank=1, reference="adapter_off"))
    assert own - off == pytest.approx(2, rel=0.01)


def test_a_cached_reference_of_dpo_makes_it_as_lean_as_nsft(planner):
    cached = per_parameter(planner, "dpo", replace(ONE, reference="cached"))
    assert cached == per_parameter(planner, "nsft", ONE)


def test_a_passing_reference_is_there_while_it_scores_and_only_then(planner):
    own = planner.plan(METHODS["ppo"], ONE, 1).phases
    cached = planner.plan(METHODS["ppo"], replace(ONE, reference="cached"), 1).phases
    weights = own["logprobs"]["reference"]["weights"]
    assert cached["logprobs"]["reference"]["weights"] == weights
    for phase in ("generate", "judge", "train", "sync"):
        assert "reference" in own[phase] and "reference" not in cached[phase]


def test_a_reference_on_the_host_comes_to_score(planner):
    own = planner.plan(METHODS["dpo"], ONE, 1)
    away = planner.plan(METHODS["dpo"], replace(ONE, reference="on_host"), 1)
    weights = own.phases["logprobs"]["reference"]["weights"]
    assert away.phases["logprobs"] == own.phases["logprobs"]
    for phase in ("generate", "judge", "train", "sync"):
        assert "reference" not in away.phases[phase]
    assert away.host_bytes - own.host_bytes == weights


def test_declared_copies_do_not_change_with_switches(planner):
    lean = replace(ONE, lora_rank=8, reference="cached", time_slice=True, sleep=True)
    assert len(planner.plan(METHODS["ppo"], lean, 1).copies) == 4
    assert len(planner.plan(METHODS["dpo"], lean, 1).copies) == 2
    assert len(planner.plan(METHODS["nsft"], lean, 1).copies) == 1


def test_an_offloaded_optimizer_needs_more_host_memory_than_it_frees(planner):
    # Adam 8, masters 4, and the gradients 2 leave the device
    two = replace(ONE, zero_stage=2)
    on, off = (
        planner.plan(METHODS["nsft"], replace(two, optimizer_device=device), 1)
        for device in ("device", "cpu")
    )
    number = planner.architecture.num_parameters
    moved = total(on.phases["train"]) - total(off.phases["train"])
    scratch = off.phases["train"]["policy"]["communication"]
    scratch -= on.phases["train"]["policy"]["communication"]
    assert (moved + scratch) / number == pytest.approx(14, rel=0.01)
    # there the gradients are float32, 4, beside their sums 2 and the weights on their way back 2
    assert (off.host_bytes - scratch) / number == pytest.approx(20, rel=0.01)


def test_an_optimizer_on_a_disk_leaves_the_host(planner):
    cpu, disk = (
        planner.plan(METHODS["nsft"], replace(ONE, zero_stage=3, optimizer_device=place), 1)
        for place in ("cpu", "nvme")
    )
    number = planner.architecture.num_parameters
    assert cpu.disk_bytes == 0
    # Adam 8 and masters 4; gradients under 1 MiB, as all are here, stay
    assert disk.disk_bytes / number == pytest.approx(12, rel=0.01)
    # one sub-group holds all of so small a model, and four buffers take what it takes: 16
    assert disk.host_bytes / number == pytest.approx(2 + 16, rel=0.01)
    assert cpu.host_bytes / number == pytest.approx(2 + 16, rel=0.01)


def test_time_slicing_needs_the_largest_copy_and_not_the_sum(planner):
    settings = replace(ONE, time_slice=True, sleep=True)
    ppo, nsft = (planner.plan(METHODS[name], settings, 1) for name in ("ppo", "nsft"))
    static = {
        plan.method: sum(
            kinds.get(kind, 0) for kinds in plan.phases["train"].values() for kind in STATIC
        )
        for plan in (ppo, nsft)
    }
    assert static["ppo"] == pytest.approx(static["nsft"], rel=0.01)
    assert ppo.host_bytes > 1.5 * nsft.host_bytes


def test_a_critic_on_the_policys_base_adds_no_base(planner):
    lora = Settings(zero_stage=0, lora_rank=64, reference="adapter_off")
    own = planner.plan(METHODS["ppo"], lora, 1)
    shared = planner.plan(METHODS["ppo"], replace(lora, critic="shared_base"), 1)
    assert own.copies == shared.copies
    before, after = (plan.phases["train"] for plan in (own, shared))
    tensors = copy_tensors(planner.architecture, "critic", bf16=True, lora_rank=64)
    assert after["critic"]["weights"] == pytest.approx(2 * tensors.num_trained, rel=0.01)
    assert before["critic"]["weights"] == pytest.approx(2 * tensors.num_parameters, rel=0.01)
    for kind in ("optimizer", "masters"):
        assert after["critic"][kind] == before["critic"][kind]
    # They work one after the other: at the peak only one of them has activations.
    working = [copy for copy, kinds in after.items() if kinds.get("activations")]
    assert len(working) == 1
    assert after["process"]["runtime"] < before["process"]["runtime"]


def test_without_sharding_gradients_are_there_twice_when_they_are_reduced(planner):
    few = Settings(zero_stage=0, text_tokens=1, response_tokens=1, images=0, micro_batch_size=1)
    nsft = planner.plan(METHODS["nsft"], few, 1).phases["train"]["policy"]
    assert nsft["communication"] == nsft["gradients"]  # fewer than 500 M elements, flattened whole
    assert "activations" not in nsft
    many = replace(few, response_tokens=2000, micro_batch_size=16, gradient_checkpointing=False)
    nsft = planner.plan(METHODS["nsft"], many, 1).phases["train"]["policy"]
    assert nsft["activations"] > nsft["gradients"] and not nsft["communication"]


@pytest.mark.parametrize(("bf16", "width"), [(True, 2), (False, 4)])
@pytest.mark.parametrize("cap", [None, 0.75])
def test_reduced_gradients_are_as_wide_as_the_weights_and_at_most_so_many(
    planner, monkeypatch, bf16, width, cap
):
    few = Settings(zero_stage=0, text_tokens=1, response_tokens=1, images=0, micro_batch_size=1)
    elements = planner.architecture.num_parameters
    flattened = elements if cap is None else int(cap * elements)
    if cap is not None:
        monkeypatch.setattr(copy_plan, "FLATTENED", flattened)
    nsft = planner.plan(METHODS["nsft"], replace(few, bf16=bf16), 1).phases["train"]["policy"]
    assert (nsft["gradients"], nsft["communication"]) == (width * elements, width * flattened)
    assert "activations" not in nsft


@pytest.mark.deepspeed
def test_that_many_is_deepspeeds_own_number():
    from deepspeed.runtime.engine import DeepSpeedEngine

    default = inspect.signature(DeepSpeedEngine.buffered_allreduce_fallback).parameters
    assert default["elements_per_buffer"].default == copy_plan.FLATTENED


def test_more_gpus_never_need_more_on_each(planner):
    settings = Settings(zero_stage=3)
    peaks = [
        planner.plan(METHODS["ppo"], settings, number).peak_bytes_per_gpu for number in (2, 4, 8)
    ]
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize(
    ("model", "gpu"),
    [
        (None, "2gb"),  # has no room for a process of each copy
        pytest.param("smolvlm2-2.2b", "24gb", marks=pytest.mark.slow),
    ],
)
def test_the_smallest_number_fits_and_one_less_does_not(tiny_model, model, gpu):
    planner, few = Planner(load_architecture(model or tiny_model), find_gpu(gpu)), ONE_SEQUENCE
    plan = planner.plan(METHODS["dpo"], few)
    assert plan.fits and plan.min_gpus == plan.num_gpus and 1 < plan.num_gpus <= 8
    fewer = planner.plan(METHODS["dpo"], few, plan.num_gpus - 1)
    assert not fewer.fits and fewer.min_gpus == plan.min_gpus


@pytest.mark.slow
def test_advice_is_what_makes_it_fit():
    planner = Planner(load_architecture("smolvlm2-2.2b"), find_gpu("a100-40"))
    tight = planner.plan(METHODS["nsft"], ONE, 1)
    assert not tight.fits
    assert any("--lora 64" in advice for advice in tight.advice)
    # what it says can be typed
    for advice in tight.advice:
        words = [] if advice.startswith("no ") else advice.split()
        settings_of(build_parser().parse_args(["plan", *SMALL, *words]))


@pytest.mark.parametrize("model", [None, pytest.param("smolvlm2-256m", marks=pytest.mark.slow)])
def test_json_has_the_documented_keys(capsys, tiny_model, model):
    architecture = load_architecture(model or tiny_model)
    # However small the model is, its training step is what needs most.
    load = () if model else ("--micro-batch", "256", "--no-checkpointing")
    assert main(["plan", "--model", model or tiny_model, "--gpu", "24gb", "--json", *load]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"] == architecture.name
    assert answer["parameters"] == architecture.num_parameters
    for name, copies in (("ppo", 4), ("dpo", 2), ("nsft", 1)):
        method = answer["methods"][name]
        assert len(method["copies"]) == copies
        peak = sum(sum(kinds.values()) for kinds in method["bytes_by_copy"].values())
        assert peak == method["peak_bytes_per_gpu"]
        assert {"binding_phase", "min_gpus", "source"} <= set(method)
        assert method["source"]["weights"] == "predicted"
        assert method["source"]["activations"] == "traced"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "qwen2.5-vl-9b"], "did you mean qwen2.5-vl-7b"),
        ([*SMALL, "--gpu", "h101"], "did you mean h100"),
        ([*SMALL, "--reference", "adapter_off"], "needs --lora RANK"),
        ([*SMALL, "--critic", "shared_base", "--lora", "8"], "--zero 0, 1 or 2"),
        ([*SMALL, "--offload", "optimizer", "--zero", "0"], "needs --zero 1, 2 or 3"),
        ([*SMALL, "--offload", "optimizer", "--time-slice"], "leave out --offload"),
        ([*SMALL, "--offload", "nvme", "--zero", "2"], "needs --zero 3"),
        ([*SMALL, "--freeze", "vision", "--lora", "8"], "leave out --freeze or --lora"),
        ([*SMALL, "--freeze", "vision", "projector", "language"], "nothing is left to train"),
        (
            [
                "--model",
                "smolvlm2-256m",
                "--reference",
                "adapter_off",
                "--lora",
                "8",
                "--method",
                "dpo",
            ],
            "--reference cached needs no copy",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
