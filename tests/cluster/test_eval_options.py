"""Switches of `quartet eval` that do not go together, and what is printed."""

from __future__ import annotations

import json
import math

import pytest

from cluster.cli import build_parser, main, split_settings
from cluster.eval_options import request
from cluster.eval_output import finite, table

POPE = ("--benchmark", "pope", "--data", "files")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["eval", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("quartet: ")
    return lines[0]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("a", "--model", "b"), "the model is given twice"),
        (("--data", "files"), "--data goes with --benchmark"),
        (("--max-tokens", "3"), "--max-tokens goes with --benchmark"),
        (("--benchmark", "pope"), "needs --data, the folder with its files"),
        ((*POPE, "--scenes", "3"), "--scenes goes with the drawn world"),
        ((*POPE, "--judge", "a:b"), "--judge: pope is scored without one"),
        ((*POPE, "--reference", "base"), "--reference goes with --best-of"),
        (("--best-of", "1"), "--best-of 1 chooses nothing"),
        (("--best-of", "4"), "give the trained one as MODEL"),
        (("tuned", "--best-of", "4", *POPE), "give --reference"),
        (("--benchmark", "mmhal", "--data", "d"), "comparable only within one judge"),
        (("--benchmark", "rewardbench", "--data", "d"), "needs --judge"),
        (
            ("m", "--benchmark", "rewardbench", "--data", "d", "--judge", "a:b"),
            "it tests a judge",
        ),
        (("--rollout.max_model_length", "9"), "did you mean 'max_model_len'?"),
    ],
)
def test_refused(words, part, capsys):
    assert part in refused(capsys, *words)


def test_missing_files_are_named_before_anything_starts(tmp_path, tiny_model, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, tiny_model, "--benchmark", "pope", "--data", str(tmp_path))
    assert "coco_pope_random.json: no such file; it comes from github.com/RUCAIBox/POPE" in line
    line = refused(capsys, tiny_model, "--benchmark", "chair", "--data", str(tmp_path))
    assert "--words own" in line or "synonyms.txt: no such file" in line
    line = refused(capsys, str(tmp_path / "none"), "--benchmark", "pope", "--data", str(tmp_path))
    assert "none: no config.json" in line
    assert not (tmp_path / "runs").exists()


def test_model_stands_anywhere_among_settings():
    words = ["eval", *POPE, "--rollout.max_model_len", "999", "tuned", "--calibrate"]
    own, settings = split_settings(build_parser(), words)
    asked = request(own)
    assert (asked.model, asked.benchmark, asked.calibrate) == ("tuned", "pope", "none")
    assert settings == ["--rollout.max_model_len", "999"]
    assert (asked.scenes, asked.words) == (500, "original")


def test_table_shows_errors_and_what_has_no_value():
    columns = {"first": {"a": 0.5, "a_se": 0.25, "b": math.nan}, "best": {"a": 1.0, "b": 2.0}}
    head, a, b = table(columns)
    assert head.split() == ["first", "best"]
    assert a.split() == ["a", "0.5000", "±", "0.2500", "1.0000"]
    assert b.split() == ["b", "-", "2.0000"]


def test_nan_is_null_in_json():
    assert json.dumps(finite({"a": [math.nan, 1.0], "b": "x"})) == '{"a": [null, 1.0], "b": "x"}'
