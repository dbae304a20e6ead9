"""A second host for a Ray cluster: a network namespace of this machine, joined to it by one cable.

What listens on loopback is out of its reach, as on a real host. And its cable can be pulled: then
nothing ends and nobody answers, which no signal to a process can show.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE, THERE = "10.77.23.1", "10.77.23.2"
"""Addresses of the cable's ends."""
QUICK = {
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""Ray's own settings find a host that does not answer dead after a minute."""
ALLOW = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
"""Ray listens to other hosts than its own only with this."""


def possible() -> bool:
    """Whether this machine lets us make network namespaces."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"quartet-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.returncode == 0


class Host:
    """Make the cable before the cluster, whose head is `HERE`; then `join` it."""

    def __init__(self) -> None:
        self.name, self.cable = f"quartet-{os.getpid()}", f"q{os.getpid()}"
        self.node_id = ""
        self._ray: subprocess.Popen[bytes] | None = None
        for words in (
            f"netns add {self.name}",
            f"link add {self.cable} type veth peer name {self.cable}p",
            f"link set {self.cable}p netns {self.name}",
            f"addr add {HERE}/30 dev {self.cable}",
            f"link set {self.cable} up",
            f"-n {self.name} addr add {THERE}/30 dev {self.cable}p",
            f"-n {self.name} link set {self.cable}p up",
            f"-n {self.name} link set lo up",
        ):
            _ip(words)

    def join(self, address: str, num_cpus: int, log: Path) -> None:
        """Start a Ray node in the namespace, and wait until the cluster has it."""
        import ray

        words = ["start", f"--address={address}", f"--node-ip-address={THERE}", "--block"]
        inside = ["ip", "netns", "exec", self.name, sys.executable, "-m", "ray.scripts.scripts"]
        with log.open("w") as file:
            self._ray = subprocess.Popen(
                [*inside, *words, f"--num-cpus={num_cpus}"],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | ALLOW,
            )
        ray.init(address=address)
        until = time.monotonic() + 120
        while not self.node_id:
            assert time.monotonic() < until and self._ray.poll() is None, log.read_text()
            time.sleep(0.2)
            there = [n for n in ray.nodes() if n["NodeManagerAddress"] == THERE and n["Alive"]]
            self.node_id = there[0]["NodeID"] if there else ""
        ray.shutdown()

    def cut(self) -> None:
        """Pull the cable."""
        _ip(f"link set {self.cable} down")

    def close(self) -> None:
        """End the node and remove the namespace."""
        if self._ray is not None:
            pids = subprocess.run(
                ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True
            )
            for pid in pids.stdout.split():
                subprocess.run(["kill", "-9", pid], check=False, capture_output=True)
            self._ray.wait()
        _ip(f"link del {self.cable}")
        _ip(f"netns del {self.name}")


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)
