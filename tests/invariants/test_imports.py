"""What each process imports: the engine's never deepspeed, the command line nothing heavy."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest


def imported_by(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


EVERY_MODULE = """
import importlib, json, pkgutil, sys
for package in map(importlib.import_module, ("trainers.data", "trainers", "rewards")):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(found.name)
    print(json.dumps([package.__name__, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """Package -> what is imported after all of its modules and those of the packages before it."""
    command = [sys.executable, "-c", EVERY_MODULE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: set(modules) for name, modules in map(json.loads, done.stdout.splitlines())}


def test_importing_the_actors_loads_no_engine():
    # Each engine is imported when a copy is loaded, in its own process: vLLM's has no deepspeed.
    names = ("engine", "rollout", "reward", "reference", "train")
    statement = f"import {', '.join(f'actors.{name}' for name in names)}"
    assert not imported_by(statement) & {"deepspeed", "vllm", "ray"}


@pytest.mark.parametrize("package", ["trainers", "rewards"])
def test_trainers_and_rewards_know_no_engine(imported, package):
    assert not imported[package] & {"ray", "vllm", "deepspeed"}
    if package == "trainers":
        assert not any(
            m.split(".")[0] in ("rewards", "actors", "cluster") for m in imported[package]
        )


def test_the_data_package_imports_nothing_else_of_ours(imported):
    modules = imported["trainers.data"]
    own = {m for m in modules if m.split(".")[0] in ("trainers", "rewards", "actors", "cluster")}
    assert "trainers.data.records" in own
    assert all(m == "trainers" or m.startswith("trainers.data") for m in own)


def test_records_need_no_torch():
    statement = "import trainers.data.records, trainers.data.record_file, trainers.data.images"
    assert not imported_by(statement) & {"torch", "transformers"}


def test_help_is_quick_and_light():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "cluster.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "ray", "vllm", "transformers", "pydantic", "numpy"}
    # Processor time, since other work on the machine does not count; 0.5 s is what users are told.
    assert after.ru_utime - before.ru_utime < 0.5
    assert "compare" in done.stdout
