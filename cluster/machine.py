"""What `quartet doctor` asks of the machine: GPU, memory, disk, cores, ports.

Every check answers with one `Check`: what was found, and what to do if that will not do.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MIN_MEMORY_GIB = 8.0
MIN_DISK_GIB = 2.0
MIN_SHM_GIB = 1.0
MIN_OPEN_FILES = 1024
SUBPROCESS_SECONDS = 120

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the table.

    Example: `Check(name="free memory", status="fail", found="3.1 GiB", remedy="...")`
    """

    name: str
    status: Status
    found: str
    remedy: str = ""
    """What to do; empty when there is nothing to do."""


def grade(name: str, found: str, *, good: bool, remedy: str, bad: Status = "fail") -> Check:
    """`ok` if `good`, else `bad` with the remedy."""
    return Check(
        name=name,
        status="ok" if good else bad,
        found=found,
        remedy="" if good else remedy,
    )


def installed(name: str) -> str | None:
    """The installed version of a distribution; None if it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_gpu() -> Check:
    """Whether torch's build fits the machine: CUDA where there is a GPU, else the CPU build."""
    from cluster.install import detect_accelerator

    here = detect_accelerator()
    version = installed("torch")
    if version is None:
        return Check(name="GPU", status="fail", found=f"{here}, no torch", remedy="make install")
    code = "import torch; print(torch.version.cuda, torch.cuda.is_available())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=SUBPROCESS_SECONDS,
    )
    if done.returncode != 0:
        return Check(
            name="GPU", status="fail", found="torch does not import", remedy="make install"
        )
    build, usable = done.stdout.split()
    return judge_gpu(present=here == "cuda", build=build, usable=usable == "True")


def judge_gpu(*, present: bool, build: str, usable: bool) -> Check:
    """`build` is `torch.version.cuda` as text, `usable` what `torch.cuda.is_available()` said."""
    if not present:
        kind = "CPU build" if build == "None" else f"CUDA {build} build"
        return Check(name="GPU", status="ok", found=f"none; torch is a {kind}")
    if build == "None":
        remedy = "the GPU would lie idle: make install"
        return Check(
            name="GPU", status="fail", found="present; torch is a CPU build", remedy=remedy
        )
    return grade(
        "GPU",
        f"present; torch is a CUDA {build} build" + ("" if usable else ", but sees no GPU"),
        good=usable,
        remedy="look at `nvidia-smi` (driver older than this CUDA?) and CUDA_VISIBLE_DEVICES",
    )


def check_space(cache: Path) -> list[Check]:
    """Shared memory, where Ray keeps objects, and the disk that runs are written to."""
    there = next(
        folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.exists()
    )
    disk = gib(shutil.disk_usage(there).free)
    result = [
        grade(
            "free disk",
            f"{disk:.1f} GiB",
            good=disk >= MIN_DISK_GIB,
            remedy=f"free {MIN_DISK_GIB:.0f} GiB, or start Quartet on another disk",
        )
    ]
    shared = Path("/dev/shm")
    if shared.exists():
        size = gib(shutil.disk_usage(shared).free)
        result.append(
            grade(
                "/dev/shm",
                f"{size:.1f} GiB free",
                good=size >= MIN_SHM_GIB,
                remedy="Ray will use slower files instead; in Docker: --shm-size=4g",
                bad="warn",
            )
        )
    return result


def gib(num_bytes: float) -> float:
    """Bytes as GiB."""
    return num_bytes / 2**30


def available_memory() -> float | None:
    """GiB that a process can still get, a container's limit included; None if unknown.

    It is the smaller of `MemAvailable` and what the cgroup (version 2) has left.
    """
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found = [
            int(x.split()[1]) * 1024 for x in text.splitlines() if x.startswith("MemAvailable")
        ]
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((group / "memory.current").read_text(encoding="ascii"))
            found.append(max(0, int(limit) - used))
    except OSError:
        pass  # no /proc on this system, or no cgroup limit
    return gib(min(found)) if found else None


def check_memory() -> Check:
    """Free memory; each actor takes about 2 GiB, most of it libraries."""
    free = available_memory()
    if free is None:
        return Check(name="free memory", status="warn", found="unknown", remedy="8 GiB are needed")
    return grade(
        "free memory",
        f"{free:.1f} GiB",
        good=free >= MIN_MEMORY_GIB,
        remedy=f"{MIN_MEMORY_GIB:.0f} GiB are needed: end other programs",
    )


def check_open_files() -> Check:
    """The limit on open files, of which Ray needs many."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    return grade(
        "open files",
        "unlimited" if unlimited else str(soft),
        good=unlimited or soft >= MIN_OPEN_FILES,
        remedy="raise it: ulimit -n 65536",
        bad="warn",
    )


def check_cores() -> Check:
    """Cores that this process may use."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return grade(
        "cores",
        str(count),
        good=count >= 2,
        remedy="works, but slowly: two are the minimum",
        bad="warn",
    )


def check_compiler() -> Check:
    """A C++ compiler and Python's headers: DeepSpeed compiles its collectives once."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    headers = (Path(sysconfig.get_path("include")) / "Python.h").exists()
    found = compiler or "none"
    return grade(
        "C++ compiler",
        found if headers else f"{found}, without Python.h",
        good=bool(compiler) and headers,
        remedy="on Debian and Ubuntu: apt install g++ python3-dev",
    )


def check_loopback() -> Check:
    """Whether a process may listen on the loopback address, as every Ray process does."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port), timeout=2):
                pass
    except OSError as error:
        remedy = "Ray cannot start: allow connections on 127.0.0.1 (sandbox, firewall?)"
        return Check(name="loopback", status="fail", found=str(error), remedy=remedy)
    return Check(name="loopback", status="ok", found="ports can be opened")


def check_cache(cache: Path) -> Check:
    """Whether the folder for the base model and other built things can be written."""
    import tempfile

    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache):
            pass
    except OSError as error:
        remedy = f"make {cache} writable, or start Quartet in a folder of your own"
        return Check(name="cache folder", status="fail", found=str(error), remedy=remedy)
    return Check(name="cache folder", status="ok", found=str(cache))
