"""The planner's answer as tables and as JSON."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.box import ASCII2
from rich.console import Console
from rich.table import Table

from cluster.method_names import COMPARED
from cluster.planner.architectures import Architecture, load_architecture
from cluster.planner.gpus import Gpu, find_gpu
from cluster.planner.options import settings_of
from cluster.planner.plan import MethodPlan, Planner, total
from cluster.planner.settings import Settings
from trainers.config import METHODS
from trainers.data.errors import UserError
from trainers.ledger import KINDS
from trainers.method import Method
from trainers.registry import make_method

SOURCE = {
    **dict.fromkeys(KINDS, "predicted"),
    "activations": "traced",  # the vision tower's share is analytic
    "logits": "traced",
    "runtime": "assumed",
}
"""Kind -> the layer its figure comes from."""
SHORT = {
    "packed_weights": "packed",
    "gradients": "grads",
    "optimizer": "optim",
    "communication": "comm",
    "activations": "activ",
    "kv_cache": "kv",
}
LEGEND = (
    "p predicted from parameter shapes; t traced, the real step on fake tensors (vision tower: "
    "analytic term); a assumed, 600 MiB for each process"
)


def run(arguments: argparse.Namespace) -> int:
    """`quartet plan`."""
    settings = settings_of(arguments)
    gpu = find_gpu(arguments.gpu)
    architecture = load_architecture(arguments.model)
    names = COMPARED if arguments.method == "all" else (arguments.method,)
    methods = [make_method(METHODS[name]()) for name in names]
    for method in methods:
        _check(method, settings, single=arguments.method != "all")
    per_node = arguments.gpus if arguments.nodes and arguments.gpus else 8
    number = arguments.gpus if not arguments.nodes else arguments.nodes * per_node
    planner = Planner(architecture, gpu, gpus_per_node=per_node)
    plans = [
        planner.plan(method, settings, number)
        for method in methods
        if not _refusal(method, settings)
    ]
    if arguments.json:
        print(json.dumps(as_json(architecture, gpu, plans), indent=2))
        return 0
    console = Console()
    console.print(
        f"{architecture.name}: {architecture.num_parameters:,} parameters on {gpu.name} "
        f"({gpu.memory_bytes / 1e9:.1f} GB), ZeRO-{settings.zero_stage}, "
        f"{'bfloat16' if settings.bf16 else 'float32'}, "
        f"{f'LoRA rank {settings.lora_rank}' if settings.lora_rank else 'all weights trained'}"
    )
    console.print(summary_table(plans))
    for plan in plans:
        console.print(copies_table(plan))
        if plan.advice:
            console.print(f"  fits with: {', or '.join(plan.advice)}")
    console.print(f"[dim]{LEGEND}[/dim]")
    for method in methods:
        if reason := _refusal(method, settings):
            console.print(f"{method.name}: {reason}")
    return 0


def _refusal(method: Method, settings: Settings) -> str | None:
    if settings.reference == "adapter_off" and "reference" in method.refreshed:
        return (
            "its reference becomes each round's policy, so adapter_off does not fit; "
            "--reference cached needs no copy"
        )
    return None


def _check(method: Method, settings: Settings, *, single: bool) -> None:
    if single and (reason := _refusal(method, settings)):
        raise UserError(f"--reference {settings.reference} with {method.name}: {reason}")


def summary_table(plans: list[MethodPlan]) -> Table:
    """One line a method."""
    on_disk = any(plan.disk_bytes for plan in plans)
    table = Table(box=ASCII2, padding=(0, 0 if on_disk else 1))
    for title in (
        "method",
        "copies",
        "GPUs",
        "peak GB/GPU",
        "binds",
        "fits",
        "min GPUs",
        "host GB",
        *(["disk GB"] if on_disk else []),
    ):
        table.add_column(title, justify="left" if title == "method" else "right")
    for plan in plans:
        table.add_row(
            plan.method,
            str(len(plan.copies)),
            str(plan.num_gpus),
            f"{plan.peak_bytes_per_gpu / 1e9:.1f}",
            plan.binding_phase,
            "[green]yes[/green]" if plan.fits else "[red]no[/red]",
            "-" if plan.min_gpus is None else str(plan.min_gpus),
            f"{plan.host_bytes / 1e9:.1f}",
            *([f"{plan.disk_bytes / 1e9:.1f}"] if on_disk else []),
        )
    return table


def copies_table(plan: MethodPlan) -> Table:
    """The fullest GPU in the binding phase, GB by copy and kind."""
    copies = plan.bytes_by_copy
    kinds = [kind for kind in KINDS if any(kind in each for each in copies.values())]
    title = f"{plan.method}, {plan.binding_phase}, fullest of {plan.num_gpus} GPUs, GB"
    table = Table(box=ASCII2, title=title, title_justify="left", padding=(0, 0))
    table.add_column("copy")
    for kind in kinds:
        table.add_column(f"{SHORT.get(kind, kind)}\n{SOURCE[kind][0]}", justify="right")
    table.add_column("sum", justify="right")
    for copy, own in copies.items():
        cells = [f"{own[kind] / 1e9:.2f}" if kind in own else "" for kind in kinds]
        table.add_row(copy.replace("_", " "), *cells, f"{sum(own.values()) / 1e9:.2f}")
    sums = [sum(each.get(kind, 0) for each in copies.values()) / 1e9 for kind in kinds]
    table.add_row("sum", *(f"{value:.2f}" for value in sums), f"{total(copies) / 1e9:.2f}")
    return table


def as_json(architecture: Architecture, gpu: Gpu, plans: list[MethodPlan]) -> dict[str, Any]:
    """The answer for programs; bytes."""
    return {
        "model": architecture.name,
        "parameters": architecture.num_parameters,
        "gpu": {"name": gpu.name, "bytes": gpu.memory_bytes},
        "methods": {
            plan.method: {
                "copies": list(plan.copies),
                "gpus": plan.num_gpus,
                "bytes_by_copy": plan.bytes_by_copy,
                "bytes_by_phase": {phase: total(each) for phase, each in plan.phases.items()},
                "peak_bytes_per_gpu": plan.peak_bytes_per_gpu,
                "host_bytes": plan.host_bytes,
                "disk_bytes": plan.disk_bytes,
                "binding_phase": plan.binding_phase,
                "fits": plan.fits,
                "min_gpus": plan.min_gpus,
                "advice": list(plan.advice),
                "source": {
                    kind: SOURCE[kind]
                    for kind in KINDS
                    if any(kind in own for own in plan.bytes_by_copy.values())
                },
            }
            for plan in plans
        },
    }
