"""`quartet submit`: a verb of Quartet as a Ray job. All of it is Ray's own job API.

The folder is uploaded, less what `.gitignore` and `.rayignore` name, and `python -m cluster.cli`
runs in it on the cluster's head.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.failures import RunFailedError
from trainers.data.errors import UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
EXCLUDES = [".git", ".venv*", ".cache", "runs", "__pycache__"]
"""Beside the ignore files, for folders that have none."""
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
GRACE = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
"""Seconds from a stopped job's SIGTERM to SIGKILL, in which it writes its checkpoint; Ray has 3."""
STOP_SECONDS = 75


def run(arguments: argparse.Namespace) -> int:
    """What `quartet submit` was asked to do. Returns its exit code."""
    client = connect(address_of(arguments.address))
    with refusals():
        if arguments.list:
            return show_list(client)
        if arguments.status is not None:
            print(status_line(client.get_job_info(arguments.status)))
            return 0
        if arguments.stop is not None:
            return stop(client, arguments.stop)
        if arguments.follow is not None:
            return follow(client, arguments.follow)
        if arguments.fetch is not None:
            from cluster.fetch import fetch

            return fetch(client, arguments, environment(arguments))
        job = submit(client, arguments, job_words(arguments.words))
        print(f"job: {job}", flush=True)
        return 0 if arguments.detach else follow(client, job)


def address_of(given: str | None) -> str:
    """The dashboard's address, from the option, Ray's variables or its default."""
    named = given or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if named and not named.startswith(("http://", "https://")):
        raise UserError(
            f"--address {named!r}: jobs go to the dashboard; give it as http://HEAD:8265"
        )
    return named or DEFAULT_ADDRESS


def job_words(words: list[str]) -> list[str]:
    """The command line of the job, a leading `--` taken off."""
    words = words[1:] if words[:1] == ["--"] else words
    if not words:
        raise UserError("submit: no command; for example: quartet submit train ppo --rounds 3")
    if words[0] == "submit":
        raise UserError("submit: a job does not submit jobs; give train, compare or another verb")
    return words


def connect(address: str) -> Any:
    """Ray's client. A token that Ray has at hand is sent only where one is asked for.

    Raises:
        UserError: nobody answers, or the token is missing or wrong.
    """
    import ray.exceptions
    from ray.job_submission import JobSubmissionClient

    try:
        try:
            client = JobSubmissionClient(address)
        except ray.exceptions.AuthenticationError:
            token = local_token()
            if token is None:
                raise
            client = JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"})
        # The client has just turned it on; it tells of every file that is not uploaded.
        logging.getLogger("ray").setLevel(logging.ERROR)
        return client
    except ray.exceptions.AuthenticationError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{address}: {reason}; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds "
            "the cluster's token"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{address}: no Ray dashboard answers ({reason}); start one with `ray start --head`, "
            "or name it: --address http://HEAD:8265"
        ) from None


def local_token() -> str | None:
    """The token where Ray looks for it; None if the mode is set by hand or there is none."""
    if "RAY_AUTH_MODE" in os.environ:
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return file.read_text().strip() or None if file.is_file() else None


@contextmanager
def refusals() -> Iterator[None]:
    """What the server refuses is one line for the user, such as an unknown job."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"status code (\d+): (.*)", str(error))
        if found is None:
            raise
        raise UserError(f"submit: {found[2].strip()[:300]} (status {found[1]})") from None


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """The job's runtime environment: the folder, and the variables that were asked for."""
    folder = Path(arguments.working_dir)
    if not folder.is_dir():
        raise UserError(f"--working-dir {folder}: no such folder")
    variables = dict(GRACE)
    for item in arguments.env:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--env {name}: give NAME=VALUE")
        if SECRET.search(name):
            raise UserError(
                f"--env {name}: Ray shows a job's variables to everybody who sees the dashboard; "
                "set it on the cluster's nodes instead"
            )
        variables[name] = value
    return {"working_dir": str(folder), "excludes": EXCLUDES, "env_vars": variables}


def submit(client: Any, arguments: argparse.Namespace, words: list[str]) -> str:
    """Upload and start; returns the job's id."""
    words = [arguments.python, "-m", "cluster.cli", *words]
    try:
        job: str = client.submit_job(
            entrypoint=shlex.join(words), runtime_env=environment(arguments)
        )
    except ValueError as error:  # what is uploaded is too large
        raise UserError(f"submit: {' '.join(str(error).split())[:400]}") from None
    return job


def follow(client: Any, job: str, show: Callable[[str], None] | None = None) -> int:
    """Show the log until the job ends. Returns the exit code of its command."""
    show = show or (lambda text: print(text, end="", flush=True))

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            show(text)

    client.get_job_info(job)  # before waiting: does it exist?
    try:
        asyncio.run(tail())
    except KeyboardInterrupt:
        print(f"\nthe job goes on; quartet submit --follow {job}, or --stop {job}", file=sys.stderr)
        return 130
    info = ended(client, job, STOP_SECONDS)
    if info.driver_exit_code is None:
        print(status_line(info), file=sys.stderr)
        return 0 if info.status == "SUCCEEDED" else 1
    return int(info.driver_exit_code)


def stop(client: Any, job: str) -> int:
    """Ask the job to end, and wait until it has. 0 if it did not run or has ended."""
    client.stop_job(job)
    info = ended(client, job, STOP_SECONDS)
    print(status_line(info))
    return int(not info.status.is_terminal())


def ended(client: Any, job: str, seconds: float) -> Any:
    """What is known of the job when it has ended, or after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        info = client.get_job_info(job)
        if info.status.is_terminal() or time.monotonic() > until:
            return info
        time.sleep(0.2)


def show_list(client: Any) -> int:
    """A line for each job, the newest last."""
    for info in sorted(client.list_jobs(), key=lambda info: info.start_time or 0):
        if info.submission_id is not None:
            print(status_line(info))
    return 0


def status_line(info: Any) -> str:
    """Id, status, exit code and command of a job."""
    code = "" if info.driver_exit_code is None else f", exit code {info.driver_exit_code}"
    return f"{info.submission_id} {info.status.value}{code}: {info.entrypoint}"


def run_folder_of(log: str) -> str:
    """The run folder that a job's log names.

    Raises:
        RunFailedError: it names none.
    """
    found = re.findall(r"run folder: (/\S.*)$", log, re.MULTILINE)
    if not found:
        raise RunFailedError("the job has made no run folder yet, or was refused; see its log")
    return str(found[0]).strip()
