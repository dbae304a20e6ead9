"""The command line: fast, one line for bad input, settings before or after the positionals."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from cluster.cli import build_parser, main, split_settings


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr of a call that ends with exit code 2."""
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("quartet: ")
    return lines[0]


def test_help_loads_neither_torch_nor_ray():
    code = (
        "import sys\nfrom cluster.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'ray', 'pydantic', 'transformers'} & set(sys.modules)))"
    )
    started = time.perf_counter()
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.splitlines()[-1] == "[]"
    # 0.1 s alone; a loaded machine gets more.
    assert time.perf_counter() - started < 3.0


@pytest.mark.parametrize(
    "words",
    [
        ["replay", "RUN", "--method", "dpo", "--rounds", "2", "--seed=-1"],
        ["replay", "--rounds", "2", "--seed=-1", "RUN", "--method", "dpo"],
        ["replay", "--rounds", "2", "--method", "dpo", "--seed=-1", "RUN"],
    ],
)
def test_settings_may_stand_anywhere(words):
    own, settings = split_settings(build_parser(), words)
    assert (own.run, own.method) == ("RUN", "dpo")
    assert settings == ["--rounds", "2", "--seed=-1"]


def test_unknown_key_names_the_nearest(capsys):
    line = refused(capsys, "train", "dpo", "--rollout.num_promts", "3")
    assert "unknown key 'rollout.num_promts'; did you mean 'num_prompts'?" in line
    line = refused(capsys, "compare", "--arms.ppo.method.kl_coeff", "0.1")
    assert "unknown key 'arms.ppo.method.kl_coeff'; did you mean 'kl_coef'?" in line
    line = refused(capsys, "compare", "--ppo.kl_coef", "0.1")
    assert "unknown key 'ppo.kl_coef'; settings belong to an arm: arms.ppo.method.kl_coef" in line
    line = refused(capsys, "train", "nsft", "--method.learningrate", "0.1")
    assert "'method.learningrate'; did you mean 'learning_rate'?" in line


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "dpo", "--rounds", "zero"], "rounds: input should be a valid integer"),
        (["train", "dpo", "--rounds", "0"], "rounds: input should be greater than or equal to 1"),
        (["train", "dpo", "--rounds"], "--rounds: a value is missing"),
        (["train", "dpo", "--rounds", "["], "'[' is not a value in YAML"),
        (["train", "dpo", "--rollout", "5"], "rollout: a group of keys was expected: gpu_memory"),
        (["train", "dpo", "--name", "../x"], "name: string should match pattern"),
        (["train", "dpo", "--model", "nowhere"], "nowhere: no config.json"),
        (["train", "dpo", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["train", "dpo", "--judge", "nowhere"], "judge 'nowhere': no such folder"),
        (["train", "dpo", "--judge", "no_such:score"], "No module named 'no_such'"),
        (["train", "dpo", "--judge", "math:nothing"], "math has no nothing"),
        (["train", "dpo", "--data", "mine.jsonl"], "the built-in judge only knows the drawn world"),
        (
            ["train", "dpo", "--data", "mine.jsonl", "--judge", "random"],
            "data.path: mine.jsonl: no such file",
        ),
        (["compare", "--arms", "[ppo, nothing]"], "unknown arm 'nothing'"),
        (["compare", "--arms", "[rand]"], "unknown arm 'rand'; did you mean random?"),
        (["compare", "--arms", "ppo"], "arms: a list of names or a mapping was expected"),
        (["compare", "--arms.mine.method.beta", "1"], "arms.mine: unknown arm, and no arms.mine."),
        (["report", "nowhere"], "nowhere: no compare.json"),
        (["replay", "nowhere", "--method", "dpo"], "nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(words, part, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert part in refused(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def test_method_of_the_config_must_fit(capsys, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("method: {name: ppo}\n")
    line = refused(capsys, "train", "dpo", "--config", str(config))
    assert "method.name does not fit train dpo" in line
    config.write_text("method: ppo\n")
    assert "method.name does not fit" in refused(capsys, "train", "dpo", "--config", str(config))
    config.write_text("- ppo\n")
    assert "a mapping of keys" in refused(capsys, "train", "dpo", "--config", str(config))


def test_interrupt_is_130(capsys, monkeypatch):
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(main.__globals__["VERBS"], "doctor", interrupted)
    assert main(["doctor"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_failed_run_is_1_and_one_line(capsys, monkeypatch):
    from cluster.failures import RunFailedError

    def failed(*_: object) -> int:
        raise RunFailedError("judge failed in judge: KeyError: 'x'; the whole story is in run.log")

    monkeypatch.setitem(main.__globals__["VERBS"], "doctor", failed)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
