"""Joining a Ray cluster: the one that `RAY_ADDRESS` names, or one of our own on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from cluster.failures import RunFailedError
from cluster.home import RAY_JOB
from trainers.data.errors import UserError

PACKAGES = ("actors", "cluster", "rewards", "trainers")


def attach(environment: Mapping[str, str]) -> None:
    """`ray.init`, with `environment` for the processes of the run.

    Raises:
        UserError: `RAY_ADDRESS` names a cluster that does not answer, or not to this token.
        RunFailedError: a Ray of our own did not start.
    """
    # Without it Ray would look for a cluster that somebody started on this machine.
    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env=runtime_env(environment),
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        if address == "local":
            raise RunFailedError(
                f"Ray did not start on this machine: {type(error).__name__}: {reason} (on a very "
                "busy one, RAY_raylet_start_wait_time_s=120 gives it more than its 30 s)"
            ) from error
        if not isinstance(error, ConnectionError | ray.exceptions.AuthenticationError):
            raise
        raise UserError(
            f"RAY_ADDRESS={address}: {reason}; start a cluster with `ray start --head`, or unset "
            "the variable to run on this machine alone"
        ) from None


def runtime_env(environment: Mapping[str, str]) -> dict[str, Any]:
    """Ray's runtime environment for a driver: the variables, and on a cluster our packages.

    Workers on other machines have none of our files, so the four packages travel; data, runs and
    `.git` do not. A submitted job has its working directory there already, and what it sets itself
    stays: Ray refuses a variable that job and driver both name.
    """
    job = json.loads(os.environ.get(RAY_JOB) or "{}").get("runtime_env") or {}
    own = {k: v for k, v in environment.items() if k not in (job.get("env_vars") or {})}
    if "RAY_ADDRESS" not in os.environ or RAY_JOB in os.environ:
        return {"env_vars": own}
    root = Path(__file__).resolve().parents[1]
    return {
        "env_vars": own,
        "py_modules": [str(root / package) for package in PACKAGES],
        "excludes": ["__pycache__"],
    }
