"""What `quartet submit` decides without a cluster; the rest is tests/e2e/test_jobs.py."""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

import pytest

from cluster.cli import build_parser, main
from cluster.failures import RunFailedError
from cluster.fetch import decoded, encoded, packed
from cluster.home import home
from cluster.submit import GRACE, address_of, environment, job_words, local_token, run_folder_of
from trainers.data.errors import UserError


def parsed(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(["submit", *words])


def test_what_follows_the_options_is_the_jobs_command():
    arguments = parsed("--detach", "train", "ppo", "--rounds", "3", "--json")
    assert arguments.detach and arguments.words == ["train", "ppo", "--rounds", "3", "--json"]
    assert job_words(parsed("--", "compare", "--quick").words) == ["compare", "--quick"]
    for words in ([], ["--"], ["submit", "train"]):
        with pytest.raises(UserError, match="submit"):
            job_words(words)


def test_the_address_is_the_dashboards(monkeypatch: pytest.MonkeyPatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert address_of(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert address_of(None) == "http://head:8265" and address_of("https://x") == "https://x"
    with pytest.raises(UserError, match="give it as http://HEAD:8265"):
        address_of("head:6379")


def test_nobody_there_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["submit", "--address", "http://127.0.0.1:1", "--list"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no Ray dashboard answers" in line and "--address http://HEAD:8265" in line


def test_variables_go_along_and_secrets_do_not(tmp_path: Path):
    folder = str(tmp_path)
    made = environment(parsed("--working-dir", folder, "--env", "A=b=c", "train", "ppo"))
    assert made["env_vars"] == {"A": "b=c", **GRACE} and made["working_dir"] == folder
    for name in ("HF_TOKEN", "openai_api_key", "MY_SECRET", "AWS_SECRET_ACCESS_KEY"):
        with pytest.raises(UserError, match="set it on the cluster's nodes") as caught:
            environment(parsed("--working-dir", folder, "--env", f"{name}=hidden", "train"))
        assert "hidden" not in str(caught.value)
    with pytest.raises(UserError, match="give NAME=VALUE"):
        environment(parsed("--working-dir", folder, "--env", "A", "train"))


def test_the_token_is_where_ray_looks_for_it(tmp_path, monkeypatch: pytest.MonkeyPatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("one\n")
    assert local_token() == "one"
    (tmp_path / "other").write_text("two")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    assert local_token() == "two"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "three")
    assert local_token() == "three"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert local_token() is None


def test_results_of_a_job_are_not_in_rays_copy_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("QUARTET_HOME", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert home() == Path()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / "quartet"
    monkeypatch.setenv("QUARTET_HOME", "/data")
    assert home() == Path("/data")


def test_a_run_folder_survives_the_way_through_a_log(tmp_path: Path):
    run = tmp_path / "dpo-1"
    (run / "rounds").mkdir(parents=True)
    (run / "final").mkdir()
    (run / "rounds/round_000001.msgpack").write_bytes(bytes(range(256)) * 300)
    (run / "final/model.safetensors").write_bytes(b"weights")
    for with_model, names in ((False, {"round_000001.msgpack"}), (True, None)):
        log = io.StringIO()
        encoded(packed(run, with_model=with_model), log)
        text = f"2026 INFO starting\n{log.getvalue()}bye\n"
        with tarfile.open(fileobj=io.BytesIO(decoded(text))) as archive:
            found = {Path(item.name).name for item in archive if item.isfile()}
        assert found == (names or {"round_000001.msgpack", "model.safetensors"})
        for damaged in (text[:-100], text.replace("A", "B", 1), "nothing"):
            with pytest.raises(RunFailedError, match="did not arrive whole"):
                decoded(damaged)


def test_the_run_folder_stands_in_the_log():
    assert run_folder_of("x\n12:00:00 run folder: /a b/dpo-1\nmore") == "/a b/dpo-1"
    with pytest.raises(RunFailedError, match="no run folder yet"):
        run_folder_of("quartet: unknown key")
