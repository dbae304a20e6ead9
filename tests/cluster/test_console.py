from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster import console as module
from cluster.console import Console, duration, number
from trainers.comparison import Comparison, Evaluated, MethodResult
from trainers.conditions import Conditions, LogprobPath

PLAIN = re.compile(r"^\d\d:\d\d:\d\d( .*)?$")


def full() -> Comparison:
    metrics = {
        "chair_i": 0.2451, "chair_s": 0.5, "recall": 0.99, "pope_accuracy": 0.82, "pope_f1": 0.84,
        "pope_yes_ratio": 0.67, "response_length": 22.2, "mentions_per_object": 1.2,
    }  # fmt: skip
    arms = {
        name: MethodResult(
            copies_train=["policy"], copies_loop=["policy", "rollout_engine", "judge_engine"],
            bytes_by_copy={"policy": {"weights": 123456789, "optimizer": 1234567890}},
            seconds_by_phase={"rollout": 100.0, "train": 23.4}, rollouts=12288, judge_calls=12288,
            metrics=dict(metrics, chair_i=0.02),
        )
        for name in ("ppo", "dpo", "nsft", "sft", "random")
    }  # fmt: skip
    arms["dpo"].failure = "parity check failed"
    arms["sft"].rollouts = 1
    honest = Evaluated(metrics={"chair_i": None})
    return Comparison(base=Evaluated(metrics=metrics), honest=honest, methods=arms)


def read(path: Path) -> list[str]:
    text = path.read_text()
    assert not {"\x1b", "\r"} & set(text)
    lines = text.splitlines()
    assert all(PLAIN.match(line) for line in lines)
    return [line[9:] for line in lines]


def test_plain_stage_prints_start_progress_and_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    console = Console(tmp_path / "run.log", interactive=False)
    with console.stage("warm up", 4) as outer:
        outer.advance(2, "step 2")
        with console.stage("evaluate", None) as inner:
            inner.advance()
    console.close()
    lines = read(tmp_path / "run.log")
    assert lines[0] == "warm up ..."
    assert lines[1].startswith("warm up 2/4, 0:00, 0:00 left, step 2")
    assert lines[2] == "  evaluate ..."
    assert lines[-2].startswith("  evaluate done, 0:00, 1")
    assert lines[-1] == "warm up done, 0:00, 2/4"
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert len(out.splitlines()) == len(lines)


def test_plain_progress_is_rare(tmp_path: Path) -> None:
    console = Console(tmp_path / "run.log", interactive=False)
    with console, console.stage("train", 1000) as stage:
        for _ in range(1000):
            stage.advance()
    assert len(read(tmp_path / "run.log")) == 2


@pytest.mark.parametrize(
    ("error", "word"), [(KeyboardInterrupt, "interrupted"), (OSError, "failed")]
)
def test_a_stage_that_raises_says_so(tmp_path: Path, error: type[BaseException], word: str) -> None:
    console = Console(tmp_path / "run.log", interactive=False)
    with pytest.raises(error), console.stage("train"):
        raise error
    assert read(tmp_path / "run.log")[-1].startswith(f"train {word}")


def test_terminal_has_bars_and_the_log_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Console(tmp_path / "run.log", interactive=True) as console:
        console.plan({"train": 60.0, "evaluate": 30.0})
        with console.stage("train", 2) as stage, console.stage("round 1"):
            stage.advance(1, "first")
            console.round_line("ppo", 1, 10, {"score": 0.5})
            console.sample("describe", "a [red] circle", None, 0.25)
        console.comparison_table(full())
        console.warn("odd")
    out = capsys.readouterr().out
    assert "\x1b[" in out
    assert "train" in out
    assert any("a [red] circle" in line for line in read(tmp_path / "run.log"))


def test_remaining_scales_with_the_stages_already_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    console = Console(interactive=False)
    assert console.remaining() is None
    console.plan({"a": 10.0, "b": 20.0, "c": 30.0})
    assert console.remaining() == 60.0
    with console.stage("a"):
        clock[0] += 20.0
    # a took twice its 10 s, so b and c are expected to take 40 and 60 s.
    assert console.remaining() == 100.0
    with console.stage("b"):
        clock[0] += 15.0
        assert console.remaining() == 85.0


def test_round_line_merges_the_spread_and_survives_odd_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"score": 0.51234, "score_std": 0.3, "kl": float("nan"), "pairs": 96, "x": "[red]"}
    with Console(tmp_path / "run.log", interactive=False) as console:
        console.round_line("dpo", 3, 10, values)
        console.round_line("dpo", 4, 10, {"loss": None})
    lines = read(tmp_path / "run.log")
    assert lines[0] == "dpo    round  3/10  score 0.512 ± 0.3  kl -  pairs 96  x [red]"
    assert lines[1].endswith("loss -")


def test_comparison_table_fits_and_shows_failures_and_verdicts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Console(interactive=False).comparison_table(full())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert "…" not in out
    for words in ("base", "honest", "24.5", "dpo failed: parity", "unequal budgets", "1/3"):
        assert words in out
    assert re.search(r"^yes PPO lowers CHAIR_i", out, re.MULTILINE)


def test_unfair_arms_are_marked_and_red(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    value = full()
    path = LogprobPath(chunk=512, gradient_checkpointing=False)
    for name, arm in value.methods.items():
        chunk = 64 if name == "random" else 512
        arm.conditions = Conditions(logprob_path=path.model_copy(update={"chunk": chunk}))
    value.methods["a_rather_long_name"] = value.methods["ppo"].model_copy(update={"method": "ppo"})
    value.unfair = value.unequal_conditions()
    for interactive in (False, True):
        Console(interactive=interactive).comparison_table(value)
        out = capsys.readouterr().out
        plain = re.sub(r"\x1b\[[\d;]*m", "", out)
        assert "unfair: not the same logprob path: chunk 512 (ppo, nsft, sft, a_r" in re.sub(
            r"\s+", " ", plain
        )
        assert "chunk 64 (random)" in re.sub(r"\s+", " ", plain)
        assert re.search(r"random\s!", plain) and not re.search(r"dpo\s!", plain)  # dpo failed
        assert ("\x1b[1;31munfair" in out) is interactive
        assert ("\x1b[31mrandom" in out) is interactive
        assert max(map(len, plain.splitlines())) <= 100


def test_comparison_table_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Console(interactive=False).comparison_table(Comparison())
    assert "base" in capsys.readouterr().out


def test_the_log_is_appended_to_and_close_may_be_repeated(tmp_path: Path) -> None:
    for text in ("first", "second"):
        console = Console(tmp_path / "deep" / "run.log", interactive=False)
        console.line(text)
        console.close()
        console.close()
    assert read(tmp_path / "deep" / "run.log") == ["first", "second"]


def test_numbers_and_durations() -> None:
    assert [number(v) for v in (0.12345, 12, "x", None, float("inf"))] == [
        "0.123",
        "12",
        "x",
        "-",
        "-",
    ]
    assert [duration(s) for s in (7, 185, 3723)] == ["0:07", "3:05", "1:02:03"]
