"""`quartet bench memory`: the committed baseline holds, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.bench_table import differences, static
from cluster.cli import main

BASELINE = Path(__file__).parents[2] / "benchmarks" / "memory_cpu.json"


@pytest.mark.deepspeed
@pytest.mark.usefixtures("train_actor")  # DeepSpeed joins one group in a process's life
def test_peaks_are_those_of_the_baseline(tmp_path, capsys):
    output = tmp_path / "memory.json"
    command = f"bench memory --methods ppo dpo nsft --baseline {BASELINE} --output {output}"
    assert main(command.split()) == 0, capsys.readouterr()
    cells = {(c["regime"], c["method"]): c for c in json.loads(output.read_text())["cells"]}
    assert len(cells) == 9
    for method, copies in (("ppo", 4), ("dpo", 2), ("nsft", 1)):
        assert len(cells["full", method]["measured"]) == copies
    for cell in cells.values():
        assert abs(cell["planned_peak"] / cell["peak"] - 1) < 0.1
        assert cell["planned_host"].keys() == cell["host"].keys()
        for copy, held in cell["host"].items():
            # DeepSpeed's scratch on the device is in the same memory here, in the plan it is not.
            assert sum(cell["planned_host"][copy].values()) == pytest.approx(
                sum(held.values()), rel=0.03
            )

    def ratio(regime: str, method: str) -> float:
        return static(cells[regime, method]) / static(cells[regime, "nsft"])

    # float32: 16 bytes for a trained parameter and 4 for a frozen one
    assert ratio("full", "ppo") == pytest.approx(2.5, rel=0.01)
    assert ratio("full", "dpo") == pytest.approx(1.25, rel=0.01)
    # adapters are not nothing in a model of this size
    assert ratio("lora", "ppo") > 3.5 and ratio("lora", "dpo") > 1.8


def test_a_changed_peak_is_named():
    baseline = json.loads(BASELINE.read_text())
    result = json.loads(BASELINE.read_text())
    assert differences(result, baseline) == []
    result["cells"][0]["peak"] = int(1.06 * result["cells"][0]["peak"])
    result["cells"][1]["method"] = "grpo"
    first, second = differences(result, baseline)
    assert "+6.0% of the baseline" in first and "grpo" in second and "not in the baseline" in second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "nothing"], "neither drawn, drawn-wide nor a model folder"),
        (["--methods", "trpo"], "--methods trpo: unknown"),
        (["--regimes", "half"], "--regimes half: unknown; regimes: full, lora, offload"),
        (["--baseline", "nowhere.json"], "cannot be read"),
        (["--baseline", str(BASELINE), "--batch", "4"], "give the same"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert main(["bench", "memory", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
