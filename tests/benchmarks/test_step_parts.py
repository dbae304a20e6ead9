"""`benchmarks.step_parts`: DeepSpeed's engine and plain torch take the same steps."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.deepspeed
def test_engine_and_torch_do_the_same(tmp_path):
    """A process of its own, since DeepSpeed joins one group in a process's life."""
    output = tmp_path / "parts.json"
    command = f"-m benchmarks.step_parts --models drawn --turns 2 --output {output}"
    done = subprocess.run(
        [sys.executable, *command.split()], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(output.read_text())
    assert [cell["task"] for cell in said["cells"]] == ["dpo", "sft"]
    for cell in said["cells"]:
        engine, torch = cell["losses"]["engine"], cell["losses"]["torch"]
        assert engine == pytest.approx(torch, rel=1e-5)
        assert engine[1] < engine[0]  # of other weights by now
        assert all(seconds > 0 for seconds in cell[said["clock"]].values())
