"""Run in a process of its own: Ray with GPUs that are not there, and what actors see of them.

`python pretended_gpus.py one|two LOG`: one node of three GPUs, or a cluster of two nodes of four
that is attached to by RAY_ADDRESS. Prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray

# Not by PYTHONPATH, which the cluster's nodes would inherit: their workers have to be sent it.
sys.path.insert(0, str(Path(__file__).parents[2]))

from cluster.console import Console
from cluster.placement import Request
from cluster.placement_config import Demand
from cluster.placement_ray import reserve
from cluster.session import Session
from trainers.data.errors import UserError

NODE = {"num_cpus": 2, "num_gpus": 4, "include_dashboard": False}


class Light:
    """Says where it is."""

    def seen(self) -> tuple[str, str, str]:
        import actors

        node = ray.get_runtime_context().get_node_id()
        return node, os.environ["CUDA_VISIBLE_DEVICES"], str(actors.__file__)


def seen(session: Session, demand: Demand) -> dict[str, list[Any]]:
    """Role -> what each rank's process sees."""
    found: dict[str, list[Any]] = {}
    handles = [
        (
            request.role,
            ray.remote(Light).options(**session.reservation.options(request.role, rank)).remote(),
        )
        for request in demand.requests
        for rank in range(request.num_processes)
    ]
    for role, actor in handles:
        found.setdefault(role, []).append(ray.get(actor.seen.remote(), timeout=120))
    return found


def refusal(requests: list[Request], **kwargs: Any) -> str:
    try:
        reserve(requests, None, say=lambda _: None, **kwargs)
    except UserError as error:
        return str(error)
    return ""


def one(console: Console) -> dict[str, Any]:
    ray.init("local", num_gpus=3, num_cpus=2, include_dashboard=False, log_to_driver=False)
    demand = Demand((Request("policy", 2), Request("rollout"), Request("judge")))
    with Session(console=console, num_threads=1, demand=demand) as session:
        result = {"seen": seen(session, demand)}
        # Two of the three are held, and the session's own plan holds all: nobody gives one back.
        result["held"] = refusal([Request("policy", 2)], wait_seconds=1.0)
        result["too_many"] = refusal([Request("policy", 4)], wait_seconds=1.0)
    with Session(console=console, num_threads=1, demand=demand) as session:  # all were given back
        result["again"] = session.plan.num_gpus
    return result


def two(console: Console) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    cluster.add_node(**NODE)
    os.environ["RAY_ADDRESS"] = cluster.address
    requests = (Request("policy", 6), Request("rollout", 2, 2), Request("judge"))
    demand = Demand(requests, (("policy", "rollout"),))
    with Session(console=console, num_threads=1, demand=demand) as session:
        return {
            "seen": seen(session, demand),
            "nodes": [node.id for node in session.plan.nodes],
            "seats": [(s.role, s.rank, s.node, len(s.gpus)) for s in session.plan.seats],
        }


if __name__ == "__main__":
    with Console(Path(sys.argv[2]), interactive=False) as console:
        found = {"one": one, "two": two}[sys.argv[1]](console)
    print(json.dumps(found | {"log": Path(sys.argv[2]).read_text()}))
