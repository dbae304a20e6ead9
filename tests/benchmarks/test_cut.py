"""A command that is cut leaves no process and no file, whatever sessions its children have made."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from benchmarks import cut
from benchmarks.cut import MARK, reason, run
from benchmarks.round_part import command
from benchmarks.shapes import TINY, miniature
from cluster.bench_models import find_model

CHILDREN = """
import subprocess, sys, tempfile, time
stay = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
tempfile.mkdtemp(prefix="left-")
line = [sys.executable, "-c", stay]
subprocess.Popen(line, start_new_session=True)
subprocess.Popen(line)
print("ready", flush=True)
"""


def ours(own: str) -> list[int]:
    """Processes that were started under this mark."""
    return cut.marked(own)


@pytest.fixture
def mark(monkeypatch) -> str:
    """Everything that is started here is told from what others run."""
    own = f"/test-{os.getpid()}"
    monkeypatch.setenv(MARK, own)
    return own


@pytest.mark.parametrize("last", ["time.sleep(600)", "sys.exit(3)", ""])
def test_nothing_is_left_of_a_command(tmp_path, mark, last):
    begun = time.monotonic()
    ended = run([sys.executable, "-c", CHILDREN + last], 4.0, tmp_path)
    assert ended.code == {"time.sleep(600)": None, "sys.exit(3)": 3, "": 0}[last]
    said = {"time.sleep(600)": "cut after its 4 s", "sys.exit(3)": "ready", "": ""}
    assert ended.failure == said[last]
    assert ours(mark) == []
    assert [path.name for path in tmp_path.iterdir()] == ["said.txt"]  # left-* is gone
    assert time.monotonic() - begun < 60


def test_others_are_left_alone(tmp_path, mark):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        assert run([sys.executable, "-c", ""], 60.0, tmp_path).code == 0
        assert other.poll() is None and ours(mark) == [other.pid]
        other.kill()


def test_the_line_that_says_why():
    assert reason("") == "no message"
    assert reason("a\nValueError: no\nLoading:  10%\rLoading: 100%\n") == "ValueError: no"
    assert (
        reason("quartet: error: --model x: not there\n") == "quartet: error: --model x: not there"
    )
    assert reason("one\ntwo\n") == "two"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_a_round_that_is_cut_leaves_none_of_its_processes(tmp_path, mark):
    """Real Ray, its daemons and workers, cut while they work."""
    source = miniature("llava-1.5-7b", TINY["llava-1.5-7b"], tmp_path)
    model = find_model(str(source), tmp_path)
    import torch

    model.build(torch.float32)
    spec = {"folder": str(model.folder), "tiny": True}
    folder = tmp_path / "w"
    folder.mkdir()
    line = command(spec, "dpo", tmp_path / "out")
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCH, mark, str(tmp_path / "seen.txt")],
        env={key: value for key, value in os.environ.items() if key != MARK},
    )
    try:
        ended = run(line, 45.0, folder)
    finally:
        watcher.kill()
        watcher.wait()
    most = set((tmp_path / "seen.txt").read_text().split())
    assert ended.failure == "cut after its 45 s"
    assert {"raylet", "gcs_server"} <= most  # it was well under way
    assert ours(mark) == []
    assert [path.name for path in folder.iterdir()] == ["said.txt"]


WATCH = """
import sys, time
from pathlib import Path
mark, file = sys.argv[1:]
seen = set()
while True:
    for entry in Path("/proc").iterdir():
        try:
            if f"QUARTET_BENCHMARK={mark}/".encode() in (entry / "environ").read_bytes():
                seen.add((entry / "comm").read_text().strip().replace(" ", "_"))
        except OSError:
            pass
    Path(file).write_text(" ".join(seen))
    time.sleep(0.5)
"""
