"""What `quartet doctor` asks of Ray and of the way between processes: token, ports, sync, ranks."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from cluster.doctor_probes import NAMES
from cluster.machine import Check, grade

PROBE_SECONDS = 180
HEAD_PORTS = {6379: "a Ray head", 8265: "its dashboard", 10001: "Ray's client server"}
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def check_token(environment: Mapping[str, str] = os.environ) -> Check:
    """Whether Ray asks for a token, and whether nobody else can read it."""
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        remedy = "whoever reaches a port of Ray runs code as you: unset RAY_AUTH_MODE"
        return Check(name="Ray token", status="warn", found="turned off", remedy=remedy)
    if environment.get("RAY_AUTH_TOKEN"):
        return Check(name="Ray token", status="ok", found="in RAY_AUTH_TOKEN")
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path(environment.get("HOME", "~")) / ".ray" / "auth_token"
    if file.is_file():
        return grade(
            "Ray token",
            f"in {file}",
            good=not stat.S_IMODE(file.stat().st_mode) & 0o077,
            remedy=f"others can read it: chmod 600 {file}",
            bad="warn",
        )
    return grade(
        "Ray token",
        f"no {file}" if named or mode == "token" else "none yet; Ray makes one",
        good=not named and mode != "token",
        remedy="`ray get-auth-token --generate`, or set RAY_AUTH_TOKEN to the cluster's",
    )


def check_address(environment: Mapping[str, str] = os.environ) -> Check:
    """Whether the cluster that a run would join is there."""
    address = environment.get("RAY_ADDRESS")
    if not address or address in ("auto", "local"):
        found = address or "not set: a Ray of its own"
        return Check(name="RAY_ADDRESS", status="ok", found=found)
    host, _, port = address.partition("://")[2 if "://" in address else 0].rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            pass
    except (OSError, ValueError) as error:
        remedy = "unset it to run on this machine alone, or start that cluster"
        return Check(name="RAY_ADDRESS", status="fail", found=f"{address}: {error}", remedy=remedy)
    return Check(name="RAY_ADDRESS", status="ok", found=f"{address} answers")


def check_ports(ports: Mapping[int, str] = HEAD_PORTS) -> Check:
    """Whether `ray start --head` would find its usual ports free; a run needs none of them."""
    taken = []
    for port in ports:
        try:
            with socket.create_server(("127.0.0.1", port)):
                pass
        except OSError:
            taken.append(port)
    return grade(
        "head's ports",
        f"{', '.join(map(str, taken))} in use" if taken else "free",
        good=not taken,
        remedy="a Ray head runs here? `quartet submit --list`; else give a new one other ports: "
        "ray start --head --port P --dashboard-port D --ray-client-server-port C",
        bad="warn",
    )


def check_allocator(environment: Mapping[str, str] = os.environ) -> Check:
    """VLLM's sleep maps memory itself, which torch's expandable segments cannot share."""
    for name in ALLOCATOR:
        options = environment.get(name, "").replace(" ", "").lower()
        if "expandable_segments:true" in options:
            remedy = f"vLLM's sleep (rollout.sleep) fails on a GPU with it: unset {name}"
            return Check(name="allocator", status="warn", found=f"{name}={options}", remedy=remedy)
    return Check(name="allocator", status="ok", found="no option that breaks vLLM's sleep")


def check_processes(seconds: float = PROBE_SECONDS) -> list[Check]:
    """One tensor on the way of a weight sync, and a sum over two ranks (`doctor_probes`)."""
    command = [sys.executable, "-m", "cluster.doctor_probes"]
    # A busy machine is not a broken one: Ray by itself gives up after 30 s.
    environment = {"RAY_raylet_start_wait_time_s": f"{seconds:.0f}", **os.environ}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds, env=environment
        )
        out, reason = done.stdout, (done.stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired as error:
        out = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else ""
        reason = f"no answer in {seconds:g} s"
    return read_probes(out, reason)


def read_probes(out: str, reason: str) -> list[Check]:
    """A check for each probe, from the lines it printed; without its line it failed."""
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    found = {line["name"]: line for line in lines}
    missing = {"good": False, "found": reason[:200]}
    remedies = {
        NAMES[0]: "processes cannot pass tensors: look at /dev/shm, RAY_ADDRESS and `ray status`",
        NAMES[1]: "ranks do not reach each other: open ports between nodes; with several networks "
        "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
    }
    return [
        grade(
            name,
            str(found.get(name, missing)["found"]),
            good=bool(found.get(name, missing)["good"]),
            remedy=remedies[name],
        )
        for name in NAMES
    ]
