"""Checkpoint folders: whole or not there, checked file by file, and what goes on from them."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.best import BestRound
from cluster.checkpoint_config import CheckpointConfig
from cluster.checkpoints import Checkpoints
from cluster.cli import main
from cluster.failures import RunStoppedError
from cluster.fingerprint import ENDS, fingerprint
from cluster.resume import ABANDONED, changed, prepare, recorded, resume_compare, resume_train
from cluster.run_state import STATE, RunState, read_state
from cluster.session import Clock
from trainers import checkpoint
from trainers.comparison import CurvePoint, MethodResult
from trainers.data.errors import UserError
from trainers.random_state import random_state, set_random_state, set_state_of, state_of

ROOT = Path(__file__).parents[2]


def fill(folder: Path) -> None:
    (folder / "engine").mkdir()
    (folder / "engine" / "policy-00001.safetensors").write_bytes(b"weights" * 1000)
    (folder / STATE).write_text("{}")


IN_A_PROCESS = """
import errno, os, sys
from pathlib import Path
from trainers import checkpoint

root = Path(sys.argv[1])

def fill(folder):
    (folder / "weights").write_bytes(b"weights" * 1000)
"""
"""The start of programs that are killed, or run out of disk."""


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def root(tmp_path):
    checkpoint.write(tmp_path, 3, fill)
    return tmp_path


def test_a_checkpoint_is_what_was_filled_and_a_manifest_of_it(root):
    (path,) = root.iterdir()
    assert path == root / "round_000003" and checkpoint.rounds(root) == [3]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["round"] == 3
    assert manifest["files"].keys() == tree(path) - {"manifest.json"}
    assert manifest["files"]["engine/policy-00001.safetensors"]["bytes"] == 7000
    checkpoint.verify(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "lacks this file"),
        (lambda path: path.write_bytes(b"weights" * 999), "has 6993 bytes, not 7000"),
        (lambda path: path.write_bytes(b"weightZ" * 1000), "checksum does not match"),
    ],
)
def test_what_is_damaged_is_named(root, damage, message):
    path = root / "round_000003" / "engine" / "policy-00001.safetensors"
    damage(path)
    with pytest.raises(UserError, match=message) as error:
        checkpoint.verify(path.parents[1])
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "[" * 100_000,
        '{"schema_version": 1}',
        '{"schema_version": 1, "files": []}',
        '{"schema_version": 1, "files": {"state.json": 3}}',
        '{"schema_version": 1, "files": {"a\\nb": {"bytes": 1, "crc32": 1}}}',
    ],
)
def test_without_its_manifest_a_folder_is_no_checkpoint(root, text):
    manifest = root / "round_000003" / "manifest.json"
    manifest.unlink() if text is None else manifest.write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: missing or damaged"):
        checkpoint.verify(manifest.parent)


def test_another_version_is_refused(root):
    manifest = root / "round_000003" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(UserError, match="schema version 9"):
        checkpoint.verify(manifest.parent)


def test_a_failure_leaves_the_older_one_and_nothing_else(root):
    def fail(folder):
        fill(folder)
        raise RuntimeError

    before = tree(root)
    for number in (3, 4):
        with pytest.raises(RuntimeError):
            checkpoint.write(root, number, fail)
        assert tree(root) == before
    checkpoint.verify(root / "round_000003")


def test_a_kill_leaves_the_older_one_and_the_next_one_can_be_written(root):
    code = """
def killed(folder):
    fill(folder)
    os.kill(os.getpid(), 9)

checkpoint.write(root, 4, killed)
"""
    command = [sys.executable, "-c", IN_A_PROCESS + code, root]
    run = subprocess.run(command, cwd=ROOT, check=False)
    assert run.returncode == -signal.SIGKILL
    assert checkpoint.rounds(root) == [3]
    checkpoint.verify(root / "round_000003")
    checkpoint.write(root, 4, fill)
    assert checkpoint.rounds(root) == [3, 4] and len(list(root.iterdir())) == 2


def test_a_full_disk_leaves_the_older_one(tmp_path):
    """A file system of 64 KiB, in a mount namespace of its own."""
    may = shutil.which("unshare") and subprocess.run(["unshare", "-rm", "true"], check=False)
    if not may or may.returncode:
        pytest.skip("this machine lets nobody mount")
    code = """
def too_much(folder):
    fill(folder)
    (folder / "more").write_bytes(bytes(100_000))

checkpoint.write(root, 1, fill)
try:
    checkpoint.write(root, 2, too_much)
except OSError as error:
    assert error.errno == errno.ENOSPC, error
else:
    sys.exit("there was room")
assert checkpoint.rounds(root) == [1] and len(list(root.iterdir())) == 1
checkpoint.verify(root / "round_000001")
checkpoint.write(root, 2, fill)
"""
    script = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", tmp_path, sys.executable]
    command.append(IN_A_PROCESS + code)
    run = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_removing_takes_the_name_away_first(root, monkeypatch):
    def killed(path, **options):
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.remove(root, 3)
    assert checkpoint.rounds(root) == [] and len(list(root.iterdir())) == 1
    checkpoint.write(root, 4, fill)
    assert [path.name for path in root.iterdir()] == ["round_000004"]


@given(st.sets(st.integers(1, 50)), st.integers(1, 5), st.one_of(st.none(), st.integers(1, 50)))
def test_the_latest_and_the_best_stay(numbers, keep, best):
    gone = set(checkpoint.superseded(numbers, keep=keep, best=best))
    left = numbers - gone
    assert set(sorted(numbers)[-keep:]) <= left
    assert best not in gone
    assert len(left) <= keep + 1


# States -----------------------------------------------------------------------------------------


def test_generators_go_on_as_they_would_have():
    generator = random.Random(3)
    generator.gauss(0, 1)  # keeps a second number for the next call
    np.random.seed(1)  # noqa: NPY002
    np.random.standard_normal()  # noqa: NPY002

    def draw():
        return (
            random.random(),
            generator.gauss(0, 1),
            np.random.standard_normal(3).tolist(),  # noqa: NPY002
            torch.randn(3).tolist(),
        )

    saved = json.loads(json.dumps({"own": state_of(generator), "all": random_state()}))
    expected = draw()
    draw()
    set_state_of(generator, saved["own"])
    set_random_state(saved["all"])
    assert draw() == expected


def state(**changes) -> RunState:
    values = {
        "round": 3,
        "method": "dpo",
        "seed": 0,
        "trained": ["policy"],
        "ranks": 1,
        "rng": state_of(random.Random(0)),
        "random": random_state(),
        "method_state": {"scale": {"mean": 0.1 + 0.2, "std": 1e-17}},
        "policy_version": 4,
        "best": None,
        "result": MethodResult(method="dpo", rollouts=12),
        "spans": [("train", 0.0, 1.5)],
        "files": {"metrics.jsonl": 10},
        "log": 20,
        "made_of": {"the model": "01234567"},
    }
    return RunState(**values | changes)


def test_a_state_comes_back_to_the_bit(tmp_path):
    saved = state()
    (tmp_path / STATE).write_text(saved.model_dump_json())
    assert read_state(tmp_path) == saved


@pytest.mark.parametrize("key", sorted(RunState.model_fields))
def test_a_state_that_lacks_something_is_refused_by_name(tmp_path, key):
    values = json.loads(state().model_dump_json())
    del values[key]
    (tmp_path / STATE).write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"state\.json: {key}: field required"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rng", [3, [1], None]), ("random", {}), ("random", {"python": [3, [], None]})],
)
def test_generators_that_cannot_be_set_are_refused(tmp_path, key, value):
    values = json.loads(state().model_dump_json()) | {key: value}
    (tmp_path / STATE).write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"state\.json: {key}: .*not the state of"):
        read_state(tmp_path)


def test_a_state_that_is_no_text_is_refused(tmp_path):
    (tmp_path / STATE).write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"state\.json: damaged"):
        read_state(tmp_path)


def test_a_clock_goes_on_where_the_other_stopped():
    clock = Clock()
    clock.go_on([("load", 0.0, 2.0), ("train", 2.0, 100.0)])
    with clock.phase("train"):
        pass
    name, begun, ended = clock.spans[-1]
    assert name == "train" and 100.0 <= begun <= ended < 101.0
    assert 98.0 <= clock.seconds()["train"] < 99.0


def test_models_and_data_are_known_by_names_sizes_and_ends(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    weights = model / "model.safetensors"
    weights.write_bytes(bytes(3 * ENDS))
    known = fingerprint(model)
    (model / "README.md").write_text("of no account")
    assert fingerprint(model) == known
    weights.write_bytes(bytes(3 * ENDS - 1) + b"1")
    assert fingerprint(model) != known
    weights.write_bytes(bytes(3 * ENDS + 1))
    assert fingerprint(model) != known
    assert fingerprint(weights) == fingerprint(weights) != fingerprint(model / "README.md")


# Going on ---------------------------------------------------------------------------------------


def test_only_length_and_placement_may_change():
    values = {"rounds": 2, "train": {"num_ranks": 2, "bf16": False}, "seed": 0}
    free = {"rounds": 5, "train": {"num_ranks": 1}, "checkpoint": {"keep": 1}}
    assert changed(values, free)["train"] == {"num_ranks": 1, "bf16": False}
    for key, other in (
        ("seed", {"seed": 1}),
        ("train.bf16", {"rounds": 3, "train": {"bf16": True}}),
        ("method.beta", {"method": {"beta": 0.5}}),
    ):
        with pytest.raises(UserError, match=f"--{key}: a resumed run keeps its settings"):
            changed(values, other)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.yaml"):
        recorded(tmp_path)
    (tmp_path / "config.yaml").write_text("arms: {dpo: {}}\n")
    with pytest.raises(UserError, match="quartet compare --resume"):
        resume_train(tmp_path, {})
    (tmp_path / "config.yaml").write_text("rounds: 2\n")
    with pytest.raises(UserError, match="quartet train --resume"):
        resume_compare(tmp_path, {})
    with pytest.raises(UserError, match="no checkpoints; this is no run of quartet train"):
        resume_train(tmp_path, {})  # a replay, for one


def test_what_the_log_said_later_goes_to_another_file(tmp_path):
    def fill_state(folder):
        (folder / STATE).write_text(state(log=7).model_dump_json())

    prepare(tmp_path)  # no checkpoint: the log stays
    (tmp_path / "run.log").write_text("before\nafter\n")
    checkpoint.write(tmp_path / "checkpoints", 3, fill_state)
    for _ in range(2):  # the second time there is nothing left to move
        prepare(tmp_path)
        assert (tmp_path / "run.log").read_text() == "before\n"
        assert (tmp_path / ABANDONED).read_text() == "after\n"
    (tmp_path / "checkpoints" / "round_000003" / STATE).unlink()
    with pytest.raises(UserError, match=r"state\.json: the checkpoint lacks this file"):
        prepare(tmp_path)


def checkpoints_of(folder: Path, fill_with, **settings) -> Checkpoints:
    """Of an arm whose copies are `fill_with`; the session is not asked anything."""
    arm = SimpleNamespace(
        folder=folder,
        config=SimpleNamespace(checkpoint=CheckpointConfig(**settings), rounds=9),
        ahead=None,
        ledger=None,
        result=MethodResult(),
        phase=Clock().phase,
    )
    made = Checkpoints(SimpleNamespace(), arm, random.Random(0), None, online=False)
    made._fill = fill_with
    made._state = lambda number: state(round=number)
    return made


def test_which_rounds_are_written_and_which_stay(tmp_path):
    def fill_state(folder, saved):
        (folder / STATE).write_text(saved.model_dump_json())

    made = checkpoints_of(tmp_path, fill_state, every=2, keep=2, keep_best="chair_i")
    for number, value in enumerate((0.3, 0.5, 0.1, 0.2, 0.4, 0.3, 0.3, 0.3, 0.3), start=1):
        made.training_begins()
        made.arm.result.curve.append(CurvePoint(round=number, chair_i=value))
        made.round_done(number)
    assert checkpoint.rounds(made.root) == [4, 8, 9]  # 9 is the last round; 3 was never written
    made.write()  # nothing is left to write
    assert checkpoint.rounds(made.root) == [4, 8, 9]


def test_sigterm_writes_a_round_that_was_not_due_unless_training_has_begun(tmp_path):
    made = checkpoints_of(tmp_path, lambda folder, saved: None, every=5)
    made.round_done(1)
    made.write()
    made.round_done(2)
    made.training_begins()
    made.write()
    assert checkpoint.rounds(made.root) == [1]


def test_a_full_disk_stops_the_run_with_a_line(tmp_path):
    room = True

    def fill_once(folder, saved):
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made = checkpoints_of(tmp_path, fill_once)
    made.round_done(1)
    room = False
    with pytest.raises(RunStoppedError) as error:
        made.round_done(2)
    for part in (
        "round 2 cannot be written: No space left",
        "that of round 1 is whole",
        "--resume",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "train: give a method"),
        (["train", "dpo", "--resume", "x"], "method: a resumed run keeps its settings"),
        (["train", "--judge", "random", "--resume", "x"], "--judge: a resumed run keeps"),
        (["compare", "--quick", "--resume", "x"], "--quick: a resumed run keeps"),
        (["train", "--resume", "/no/such"], "no config.yaml; give the folder of a run"),
    ],
)
def test_the_command_line_says_what_is_wrong(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_the_best_rounds_of_checkpoints_stay(tmp_path):
    best = BestRound(SimpleNamespace(folder=tmp_path), "chair_i")
    for number in (1, 2, 4):
        (tmp_path / "best" / f"round_{number:06d}").mkdir(parents=True)
    best.go_on(4, 0.1)
    best.keep_only({2})
    assert sorted(p.name for p in best.folder.iterdir()) == ["round_000002", "round_000004"]
    best.folder.joinpath("round_000004").rename(tmp_path / "final")
    best.go_on(4, 0.1)  # the run had ended: its model is the best one
    assert best.path == tmp_path / "best" / "round_000004" and best.path.is_dir()
    with pytest.raises(UserError, match="round_000003: the best round's model is missing"):
        best.go_on(3, 0.1)
