"""`quartet submit`: its arguments, without a heavy import."""

from __future__ import annotations

import argparse

DESCRIPTION = "a Ray job that runs a verb of quartet on a cluster; exit code: the job's own"
EPILOG = """
quartet submit train ppo --config my.yaml        upload this folder, run, follow the log
quartet submit --detach compare --quick          do not follow
quartet submit --status JOB | --follow JOB | --stop JOB | --fetch JOB | --list
address: --address, or RAY_API_SERVER_ADDRESS or RAY_ADDRESS, or http://127.0.0.1:8265
token:   RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, as Ray reads it; docs/jobs.md
"""


def add_submit_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; what follows them is the command line of the job."""
    parser.add_argument("--address", help="of the cluster's dashboard, such as http://HEAD:8265")
    parser.add_argument(
        "--working-dir", default=".", help="folder that is uploaded, less its .rayignore (.)"
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for the job; the dashboard shows it, so no secrets",
    )
    parser.add_argument(
        "--python", default="python", help="the cluster's Python that has Quartet's packages"
    )
    parser.add_argument("--detach", action="store_true", help="print the job's id and return")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="all jobs of the cluster")
    action.add_argument("--status", metavar="JOB", help="one line about a job")
    action.add_argument("--follow", metavar="JOB", help="show a job's log until it ends")
    action.add_argument("--stop", metavar="JOB", help="end a job")
    action.add_argument("--fetch", metavar="JOB", help="copy the job's run folder here")
    parser.add_argument("--to", default="runs", help="--fetch: folder to put it into (runs)")
    parser.add_argument(
        "--with-model", action="store_true", help="--fetch: weights and checkpoints, too"
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="VERB ...")
