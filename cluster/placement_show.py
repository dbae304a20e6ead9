"""`quartet plan --placement`: roles to GPUs and batches to steps on a cluster to be."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

from cluster.batches import derive
from cluster.config import RunConfig
from cluster.config_text import apply_overrides, read_yaml, set_key, validate
from cluster.placement import Node, Plan, plan
from cluster.placement_config import demand
from cluster.placement_text import lines
from trainers.registry import make_method

DEFAULT_METHOD, DEFAULT_GPUS = "ppo", 8
"""The method with the most roles, on the usual node."""


def run(arguments: argparse.Namespace, settings: Sequence[str]) -> int:
    """Print the map role -> rank -> node -> GPU and the derivation of the batch sizes."""
    config = _config(arguments, list(settings))
    nodes = [
        Node(f"node-{index}", arguments.gpus or DEFAULT_GPUS)
        for index in range(arguments.nodes or 1)
    ]
    method = make_method(config.method)
    begun = time.perf_counter()
    wanted = demand(config)
    found = plan(wanted.requests, nodes, wanted.colocate)
    seconds = time.perf_counter() - begun
    ranks = {role: found.num_ranks(role) for role in method.trained}
    batches = derive(config, method, ranks)
    if arguments.json:
        print(json.dumps({**as_json(found), "planning_seconds": seconds}, indent=2))
        return 0
    for line in [*lines(found), *batches.lines()]:
        print(line)
    total = sum(node.gpus for node in nodes)
    print(
        f"{len(found.seats)} processes on {found.num_gpus} of {total} GPUs ({len(nodes)} node(s)); "
        f"planned in {1000 * seconds:.1f} ms"
    )
    return 0


def as_json(found: Plan) -> dict[str, Any]:
    """The map for programs."""
    return {
        "placement": [
            {
                "role": seat.role,
                "rank": seat.rank,
                "node": found.nodes[seat.node].name,
                "gpus": list(seat.gpus),
            }
            for seat in found.seats
        ],
        "colocated": [list(group) for group in found.groups],
    }


def _config(arguments: argparse.Namespace, settings: list[str]) -> RunConfig:
    values = apply_overrides(read_yaml(arguments.config) if arguments.config else {}, settings)
    if arguments.method != "all":
        set_key(values, "method.name", arguments.method)
    elif "method" not in values:
        set_key(values, "method.name", DEFAULT_METHOD)
    return validate(RunConfig, values, arguments.config or "plan")
