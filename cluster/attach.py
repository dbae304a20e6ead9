"""What Ray needs to know of this code and its environment, on this machine or on a cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("actors", "cluster", "rewards", "trainers")
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it in the driver of a submitted job, which has brought its code along."""


def runtime_env(environment: Mapping[str, str]) -> dict[str, Any]:
    """Ray's runtime environment for a driver: the variables, and on a cluster our packages.

    Workers on other machines have none of our files, so the four packages travel; data, runs and
    `.git` do not. A submitted job has its working directory there already, and what it sets itself
    stays: Ray refuses a variable that job and driver both name.
    """
    job = json.loads(os.environ.get(JOB_CONFIG) or "{}").get("runtime_env") or {}
    own = {k: v for k, v in environment.items() if k not in (job.get("env_vars") or {})}
    if "RAY_ADDRESS" not in os.environ or JOB_CONFIG in os.environ:
        return {"env_vars": own}
    root = Path(__file__).resolve().parents[1]
    return {
        "env_vars": own,
        "py_modules": [str(root / package) for package in PACKAGES],
        "excludes": ["__pycache__"],
    }
