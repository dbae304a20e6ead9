"""Failures on their way to the user."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from ray.exceptions import RayTaskError

from actors.weight_sync import CorruptBucketError
from cluster.console import Console
from cluster.failures import RunFailedError, RunStoppedError, reported, surfaced
from trainers.data.errors import UserError


def from_actor(cause: Exception) -> Exception:
    """As `ray.get` raises it: the traceback is in its text."""
    error = RayTaskError("judge", "ray::JudgeActor.judge() (pid=1)\nlines of it", cause)
    return error.as_instanceof_cause()


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (UserError("model: no such folder"), UserError),
        (RunStoppedError("parity"), RunStoppedError),
        (FloatingPointError("policy: loss is nan"), RunStoppedError),
        (CorruptBucketError("bucket"), RunStoppedError),
    ],
)
def test_expected_failures_keep_their_own_line(cause, kind):
    with pytest.raises(kind) as caught, surfaced():
        raise from_actor(cause)
    assert str(caught.value) == str(cause)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_unexpected_failures_name_role_and_call_and_the_log(folder):
    with (
        Console(folder / "run.log", quiet=True) as console,
        pytest.raises(RunFailedError) as caught,
        reported(console, folder),
    ):
        raise from_actor(KeyError("boom"))
    text = str(caught.value)
    assert text.startswith("judge failed in judge: KeyError: 'boom'; the whole story is in")
    assert "\n" not in text and str(folder / "run.log") in text
    assert "lines of it" in (folder / "run.log").read_text()


def test_a_refused_run_leaves_no_folder_but_a_started_one_stays(folder):
    rounds = folder / "rounds"
    rounds.mkdir()
    (rounds / "round_000001.msgpack").write_bytes(b"")
    for stays in (True, False):
        with (
            Console(folder / "run.log", quiet=True) as console,
            pytest.raises(UserError),
            reported(console, folder),
        ):
            raise from_actor(UserError("bad"))
        assert folder.exists() == stays
        (rounds / "round_000001.msgpack").unlink(missing_ok=True)


def test_a_ray_that_does_not_start_is_one_line(tmp_path):
    """Below a folder whose name is too long for the sockets in it."""
    code = "from cluster.attach import attach; attach({})"
    folder = tmp_path / ("x" * 100)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_TMPDIR": folder},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"RunFailedError: Ray did not start on this machine: OSError: .*107 by", last)
