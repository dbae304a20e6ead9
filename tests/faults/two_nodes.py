"""A run on two Ray nodes of this machine, the second of which is lost with a role on it.

    python -m tests.faults.two_nodes FAULT MODEL FOLDER    writes FOLDER/seen.json

A program of its own: the tests' process has joined another Ray already.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.catalogue import ALL, Fault
from tests.faults.hosts import ALLOW, HERE, QUICK, Host


class Blow(threading.Thread):
    """Strikes the second node when the run reaches the fault's phase."""

    def __init__(self, fault: Fault, strike: Callable[[], None], phases: Path):
        super().__init__(daemon=True)
        self.fault, self.strike, self.phases = fault, strike, phases
        self.struck = self.went_on = 0.0

    def run(self) -> None:
        """Poll, strike, poll."""
        self._until(at=True)
        self.strike()
        self.struck = time.time()
        self._until(at=False)
        self.went_on = time.time()

    def _until(self, *, at: bool) -> None:
        moment = [self.fault.round, self.fault.phase]
        while True:
            try:
                now = json.loads(self.phases.read_text())
            except (OSError, ValueError):
                now = {}
            if now and ([now["round"], now["phase"]] == moment) == at:
                return
            time.sleep(0.005)


@contextmanager
def two_nodes(fault: Fault, folder: Path) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """The cluster's address, the second node's id, and what strikes it."""
    from ray.cluster_utils import Cluster

    if fault.detail == "raylet killed":
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
        second = cluster.add_node(num_cpus=2)
        yield cluster.address, second.node_id, second.kill_raylet
        cluster.shutdown()
        return
    os.environ.update(ALLOW)
    host = Host()
    try:
        head = {"num_cpus": 4, "node_ip_address": HERE, "_system_config": QUICK}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        host.join(cluster.address, 2, folder / "host.log")
        yield cluster.address, host.node_id, host.cut
        cluster.shutdown()
    finally:
        host.close()


def main(fault: Fault, model: str, folder: Path) -> dict[str, Any]:
    """Start two nodes and a run, strike, and say what came of it."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.console import Console
    from cluster.heldout import HeldOut
    from cluster.offline import go_offline
    from cluster.session import Session
    from tests.faults.ground import Ground, check_finished, make_arm, run
    from trainers.data.images import ImageStore

    go_offline()

    with two_nodes(fault, folder) as (address, second, strike):
        os.environ["RAY_ADDRESS"] = address
        started: list[str] = []

        class OnTwoNodes(Session):
            """The fault's role starts on the second node while there is one."""

            def _start(self, actor: type, role: str, *args: Any, **kwargs: Any) -> Any:
                import ray

                if role != fault.role or actor.__name__ == "TrainActor":
                    return super()._start(actor, role, *args, **kwargs)
                there = NodeAffinitySchedulingStrategy(node_id=second, soft=bool(started))
                started.append(role)
                made = ray.remote(actor).options(num_cpus=0, scheduling_strategy=there)
                return made.remote(num_threads=1)

        console = Console(folder / "run.log", quiet=True)
        with console, OnTwoNodes(console=console, num_threads=1) as session:
            store = ImageStore(folder / "images")
            ground = Ground(session, folder, model, store, HeldOut(store, 2, 2))
            arm = make_arm(ground, fault)
            blow = Blow(fault, strike, arm.folder / "phase.json")
            blow.start()
            error = run(ground, arm)
            place = session.served(fault.role).processes[0].place()
    if error is None:
        check_finished(arm)
    return {
        "error": error,
        "restarts": session.restarts,
        "seconds": blow.went_on - blow.struck,
        "moved": place is not None and place.node_id != second,
        "lost": arm.result.account.lost,
        "doubled": arm.result.account.doubled,
    }


if __name__ == "__main__":
    (chosen,) = [fault for fault in ALL if fault.id == sys.argv[1]]
    seen = main(chosen, sys.argv[2], Path(sys.argv[3]))
    Path(sys.argv[3], "seen.json").write_text(json.dumps(seen))
