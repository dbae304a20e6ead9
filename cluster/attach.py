"""Joining a Ray cluster: the one that `RAY_ADDRESS` names, or one of our own on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import ray

from cluster.home import RAY_JOB
from trainers.data.errors import UserError


def attach(environment: Mapping[str, str]) -> None:
    """`ray.init`, with `environment` for the processes of the run.

    Raises:
        UserError: `RAY_ADDRESS` names a cluster that does not answer, or not to this token.
    """
    # Without it Ray would look for a cluster that somebody started on this machine.
    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": own_variables(environment)},
        )
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        if address == "local":
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"RAY_ADDRESS={address}: {reason}; unset it to run on this machine alone"
        ) from None


def own_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what a submitted job sets itself: its settings count, and Ray takes only one."""
    job = json.loads(os.environ.get(RAY_JOB, "{}"))
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in environment.items() if name not in given}
