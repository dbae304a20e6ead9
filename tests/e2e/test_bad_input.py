"""What a user gets wrong, tried for real: one line, exit code 2, no run folder left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.cli import main

Rows = list[dict[str, Any]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: forty images, a data file and a judge."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for index in range(4):
        image = Image.new("RGB", (72, 72), (60 * index, 80, 90))
        image.save(tmp_path / f"photos/{index}.png")
    judge = "def score(response, **rest):\n    return len(response)\n"
    (tmp_path / "my_judge.py").write_text(judge)
    write(tmp_path, rows())
    return tmp_path


def rows(number: int = 40) -> Rows:
    return [
        {"images": [f"photos/{i % 4}.png"], "prompt": "describe the image ."} for i in range(number)
    ]


def write(folder: Path, content: Rows) -> None:
    text = "".join(json.dumps(row) + "\n" for row in content)
    (folder / "train.jsonl").write_text(text)


def train(model: str | Path, *words: str) -> list[str]:
    base = ["train", "dpo", "--model", str(model), "--data", "train.jsonl"]
    return [*base, "--judge", "my_judge:score", *words]


def refused(capsys: pytest.CaptureFixture[str], home: Path, words: list[str]) -> str:
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("quartet: "), lines
    runs = home / "runs"
    assert not runs.exists() or not list(runs.iterdir())
    return lines[0]


def no_image(content: Rows, home: Path) -> None:
    for row in content[:3]:
        row["images"] = ["photos/none.png"]


def corrupt(content: Rows, home: Path) -> None:
    data = (home / "photos/0.png").read_bytes()
    (home / "photos/0.png").write_bytes(data[: len(data) // 2])


def enormous(content: Rows, home: Path) -> None:
    Image.new("1", (60_000, 1_000)).save(home / "photos/0.png")


def outside(content: Rows, home: Path) -> None:
    for row in content[:3]:
        row["images"] = ["../secret.png"]


def empty(content: Rows, home: Path) -> None:
    content.clear()


def other_column(content: Rows, home: Path) -> None:
    for row in content:
        row["question"] = row.pop("prompt")


def too_long(content: Rows, home: Path) -> None:
    for row in content:
        row["prompt"] = "describe the image . " * 200


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (no_image, "3 of 40 rows cannot be used, more than 5%; mend or remove them: row 1:"),
        (corrupt, "photos/0.png: damaged or cut off"),
        (enormous, "photos/0.png: 60000x1000 pixels, allowed are 1 to 50000000; shrink the image"),
        (outside, "image path '../secret.png' leaves"),
        (empty, "train.jsonl: empty data set"),
        (other_column, "no known format; columns found: images, question"),
        (too_long, "sample train-1: prompt of 8"),
    ],
)
def test_bad_data(spoil: Callable[[Rows, Path], None], part: str, home, tiny_model, capsys) -> None:
    content = rows()
    spoil(content, home)
    write(home, content)
    assert part in refused(capsys, home, train(tiny_model))


def test_format_that_is_unknown_or_does_not_fit(home, tiny_model, capsys):
    line = refused(capsys, home, train(tiny_model, "--data.format", "csv"))
    assert "data.format: input should be 'auto', 'trl', 'rlaif-v'" in line
    line = refused(capsys, home, train(tiny_model, "--data.format", "llava"))
    assert "40 of 40 rows cannot be used, more than 5%" in line
    assert "row 1: conversations is not a list of turns" in line


def test_prompts_that_do_not_fit_name_the_setting(home, tiny_model, capsys):
    words = train(tiny_model, "--rollout.max_model_len", "64", "--rollout.max_tokens", "60")
    line = refused(capsys, home, words)
    assert "rollout.max_model_len=64; raise it, or shorten the prompts (40 of 40" in line
    line = refused(capsys, home, train(tiny_model, "--rollout.max_model_len", "100000"))
    assert "rollout.max_model_len=100000" in line and "takes at most" in line


def spoiled_model(home: Path, model: str) -> Path:
    return Path(shutil.copytree(model, home / "model"))


def test_other_families_are_refused(home, tiny_model, capsys):
    model = spoiled_model(home, tiny_model)
    config = json.loads((model / "config.json").read_text()) | {"model_type": "qwen9_vl"}
    (model / "config.json").write_text(json.dumps(config))
    line = refused(capsys, home, train(model))
    assert "model_type 'qwen9_vl' is not supported; families that work: llava" in line


@pytest.mark.parametrize(
    ("missing", "part"),
    [
        ("processor_config.json", "no image processor"),
        ("tokenizer.json", "no tokenizer"),
        ("model.safetensors", "no weights"),
        ("config.json", "no config.json"),
    ],
)
def test_incomplete_model_folders_are_refused(missing, part, home, tiny_model, capsys):
    model = spoiled_model(home, tiny_model)
    (model / missing).unlink()
    assert part in refused(capsys, home, train(model))


def test_judge_that_cannot_be_imported(home, tiny_model, capsys, monkeypatch):
    (home / "broken_judge.py").write_text("import json\n1 / 0\n")
    words = train(tiny_model)
    words[words.index("my_judge:score")] = "broken_judge:score"
    line = refused(capsys, home, words)
    assert "importing broken_judge raised ZeroDivisionError: division by zero" in line


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_interrupt_leaves_a_readable_run_and_no_process(home, tiny_model):
    """Ctrl-C goes to the whole process group, as a terminal sends it."""
    (home / "my_judge.py").write_text(
        "import time\ndef score(response, **rest):\n    time.sleep(0.2)\n    return len(response)\n"
    )
    words = train(tiny_model, "--rounds", "2", "--rollout.num_prompts", "8")
    log = home / "out.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", *words, "--rollout.max_tokens", "8"],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Tests that a shell started in the background hand an ignored SIGINT on to children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        while "dpo round 2/2 ..." not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    assert "interrupted; what was finished is in the run folder" in log.read_text()
    assert "Traceback" not in log.read_text()
    (folder,) = (home / "runs").iterdir()
    result = json.loads((folder / "compare.json").read_text())["methods"]["dpo"]
    assert result["failure"] == "interrupted" and len(result["curve"]) == 1
    assert (folder / "report.html").is_file()
    assert (folder / "rounds" / "round_000001.msgpack").is_file()
    time.sleep(2)
    assert children and not [pid for pid in children if Path(f"/proc/{pid}").exists()]
