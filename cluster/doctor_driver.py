"""What `quartet doctor` asks the NVIDIA driver: its version, and which GPUs there are."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter

from cluster.machine import SUBPROCESS_SECONDS, Check, grade

MIN_DRIVER = 580
"""Of CUDA 13."""


def check_driver() -> Check:
    """Every GPU's name and memory, and the driver's version."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Check(name="GPU driver", status="ok", found="no nvidia-smi; runs on the CPU")
    done = subprocess.run(
        [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
        timeout=SUBPROCESS_SECONDS,
    )
    return judge_driver(done.stdout, done.returncode)


def judge_driver(out: str, code: int) -> Check:
    """`out` has a line `name, memory, driver` for each GPU."""
    rows = [[part.strip() for part in line.split(",")] for line in out.splitlines()]
    rows = [row for row in rows if len(row) == 3]
    if code != 0 or not rows:
        remedy = "the driver does not answer: `nvidia-smi` says why; a reboot after an update helps"
        return Check(name="GPU driver", status="fail", found=out.strip()[:100], remedy=remedy)
    driver = rows[0][2]
    kinds = Counter(f"{name}, {memory}" for name, memory, _ in rows)
    found = "; ".join(f"{number} x {kind}" for kind, number in kinds.items())
    return grade(
        "GPU driver",
        f"{driver}; {found}",
        good=int(driver.split(".")[0]) >= MIN_DRIVER,
        remedy=f"CUDA 13, which torch and vLLM are built for, wants {MIN_DRIVER} or newer",
        bad="warn",
    )
