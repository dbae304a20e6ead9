"""A job's run folder, from the cluster's disk to this one, through the log of a second job.

That needs nothing but the job API: no shared disk and no open port. Weights stay there unless asked
for; large ones are better copied by what the cluster offers.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import re
import shlex
import sys
import tarfile
from pathlib import Path
from typing import Any, TextIO

from cluster.failures import RunFailedError
from cluster.submit import follow, run_folder_of
from trainers.data.errors import UserError

WEIGHTS = ("final", "checkpoints", "best")
"""Folders of a run that hold models."""
MAX_BYTES = 512 * 2**20
LINE = 48 * 1024
MARK = "quartet-run-folder"


def fetch(client: Any, arguments: argparse.Namespace, environment: dict[str, Any]) -> int:
    """Copy the run folder of `arguments.fetch` below `arguments.to`."""
    source = run_folder_of(client.get_job_logs(arguments.fetch))
    target = Path(arguments.to) / Path(source).name
    if target.exists():
        raise UserError(f"{target}: exists; remove it, or name another folder with --to")
    words = [arguments.python, "-m", "cluster.fetch", source]
    words += ["--with-model"] if arguments.with_model else []
    job = client.submit_job(entrypoint=shlex.join(words), runtime_env=environment)
    if follow(client, job, lambda _: None):
        tail = client.get_job_logs(job).strip().splitlines()[-1:]
        raise RunFailedError(f"{source}: cannot be fetched: {' '.join(tail)}")
    data = decoded(client.get_job_logs(job))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        # "data": nothing outside the folder, no links that lead out, no devices.
        archive.extractall(arguments.to, filter="data")
    client.delete_job(job)
    print(target)
    return 0


def encoded(data: bytes, out: TextIO) -> None:
    """Lines of base64 between marks; the last mark holds the hash."""
    print(f"{MARK} begin", file=out)
    for start in range(0, len(data), LINE):
        print(base64.b64encode(data[start : start + LINE]).decode(), file=out)
    print(f"{MARK} end {hashlib.sha256(data).hexdigest()}", file=out)


def decoded(log: str) -> bytes:
    """What `encoded` wrote into a log. Limiting case: no data, two marks.

    Raises:
        RunFailedError: it is not whole.
    """
    found = re.search(rf"{MARK} begin\n(.*?){MARK} end ([0-9a-f]{{64}})", log, re.DOTALL)
    data = b"".join(map(base64.b64decode, found[1].split())) if found else b""
    if found is None or hashlib.sha256(data).hexdigest() != found[2]:
        raise RunFailedError("the run folder did not arrive whole; try again")
    return data


def packed(folder: Path, *, with_model: bool) -> bytes:
    """The folder as a compressed tar, weights left out unless asked for.

    Raises:
        UserError: more than `MAX_BYTES`.
    """
    left_out = () if with_model else WEIGHTS

    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if Path(member.name).name in left_out and member.isdir() else member

    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not set(path.relative_to(folder).parts[:-1]) & {*left_out}
    ]
    size = sum(path.stat().st_size for path in files)
    if size > MAX_BYTES:
        raise UserError(
            f"{folder}: {size / 2**20:.0f} MiB are too many to send through a log "
            f"({MAX_BYTES // 2**20}); copy it from the cluster's disk"
        )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, folder.name, filter=wanted)
    return buffer.getvalue()


def main(words: list[str]) -> int:
    """On the cluster: print the folder `words[0]`."""
    folder = Path(words[0])
    if not folder.is_dir():
        print(f"{folder}: no such folder on this node", file=sys.stderr)
        return 2
    try:
        encoded(packed(folder, with_model="--with-model" in words), sys.stdout)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
