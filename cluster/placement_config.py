"""The settings of placement, and what they and the settings they agree with say of each role."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from cluster.placement import ROLES, PlacedRole, Request
from trainers.config import Settings
from trainers.data.errors import UserError

if TYPE_CHECKING:
    from cluster.config import RunConfig

WAIT_SECONDS = 120.0
ONE_PROCESS: tuple[PlacedRole, ...] = ("reference", "judge", "writer")
NEEDS_GPU: tuple[PlacedRole, ...] = ("policy", "critic", "rollout")


class PlacementConfig(Settings):
    """Roles to GPUs: how many each has, and who shares."""

    gpus: dict[PlacedRole, Annotated[int, Field(ge=0)]] = Field(default={})
    """GPUs of a role. Left out: as many as `train.num_ranks` (policy, and critic as policy) and
    `rollout.num_engines` times `rollout.tensor_parallel` (rollout) say, and 1 of every other."""
    colocate: tuple[tuple[PlacedRole, ...], ...] | None = None
    """Groups of roles that share GPUs, for example `[[policy, reference], [rollout, judge]]`; a
    role that is not named has its own. null: no role shares while there are GPUs enough."""
    wait_seconds: float = Field(default=WAIT_SECONDS, gt=0)
    """How long to wait for GPUs that others hold."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        for role in ONE_PROCESS:
            if self.gpus.get(role, 0) > 1:
                raise UserError(
                    f"placement.gpus.{role}={self.gpus[role]}: this role is one process on one "
                    "GPU; give it 1, or 0 for none"
                )
        for role in NEEDS_GPU:
            if self.gpus.get(role, 1) < 1:
                raise UserError(f"placement.gpus.{role}=0: give it 1 or more")
        named = [role for group in self.colocate or () for role in group]
        if twice := {role for role in named if named.count(role) > 1}:
            raise UserError(
                f"placement.colocate names {', '.join(sorted(twice))} more than once; a role is in "
                "one group"
            )
        return self


def agree(values: Any) -> Any:
    """Raw settings of a run in which `train.num_ranks` and `rollout.num_engines` are what
    `placement.gpus` says, so that either may be given.

    Raises:
        UserError: both are given and contradict each other.
    """
    gpus = _given(_given(values, "placement"), "gpus")
    if not isinstance(gpus, Mapping) or not isinstance(values, Mapping):
        return values
    changed = dict(values)
    if policy := _number(gpus, "policy"):
        key, ranks = "train.num_ranks", _given(values.get("train"), "num_ranks")
        if ranks not in (None, policy):
            raise UserError(
                f"{key}={ranks} contradicts placement.gpus.policy={policy}: a rank has a GPU of "
                f"its own; set {key}={policy}, or leave one of them out"
            )
        changed["train"] = _with(values.get("train"), "num_ranks", policy)
    if rollout := _number(gpus, "rollout"):
        own = values.get("rollout")
        each = _given(own, "tensor_parallel") or 1
        engines = _given(own, "num_engines")
        if not isinstance(each, int) or rollout % each or engines not in (None, rollout // each):
            raise UserError(
                f"placement.gpus.rollout={rollout} contradicts rollout.num_engines="
                f"{engines or 1} x rollout.tensor_parallel={each}; make it their product, or leave "
                "it or rollout.num_engines out"
            )
        changed["rollout"] = _with(own, "num_engines", rollout // each)
    return changed


def _number(gpus: Mapping[str, Any], role: str) -> int:
    """GPUs of a role; 0 where none, or nothing sensible, was given, which is refused elsewhere."""
    found = gpus.get(role)
    return found if isinstance(found, int) and found > 0 else 0


def _given(values: Any, key: str) -> Any:
    """What was given under `key` in a mapping, or in settings that were made of one."""
    if isinstance(values, BaseModel):
        return getattr(values, key) if key in values.model_fields_set else None
    return values.get(key) if isinstance(values, Mapping) else None


def _with(values: Any, key: str, value: int) -> Any:
    if isinstance(values, BaseModel):
        return values.model_copy(update={key: value})
    return {**(values or {}), key: value}


@dataclass(frozen=True, slots=True)
class Demand:
    """What a run asks of the cluster."""

    requests: tuple[Request, ...]
    colocate: Sequence[Sequence[PlacedRole]] | None = None
    wait_seconds: float = WAIT_SECONDS


def demand(*configs: RunConfig) -> Demand:
    """What runs ask for that share their processes: the roles of all of them."""
    first = configs[0]
    roles = {role for config in configs for role in roles_of(config)}
    return Demand(
        role_requests(first, roles), first.placement.colocate, first.placement.wait_seconds
    )


def role_requests(config: RunConfig, roles: Iterable[str]) -> tuple[Request, ...]:
    """The processes of `roles`."""
    wanted, gpus = set(roles), config.placement.gpus
    ranks = config.train.num_ranks
    number = {"policy": ranks, "critic": gpus.get("critic", ranks)}
    made = []
    for role in ROLES:
        if role not in wanted:
            continue
        if role == "rollout":
            rollout = config.rollout
            made.append(Request(role, rollout.num_engines, rollout.tensor_parallel))
        elif role in number:
            made.append(Request(role, number[role]))
        else:
            made.append(Request(role, 1, gpus.get(role, 1)))
    return tuple(made)


def roles_of(config: RunConfig) -> set[str]:
    """The roles that have processes in a run of this configuration."""
    from cluster.text_model import writer_folder
    from trainers.registry import make_method

    method = make_method(config.method)
    shared = config.train.critic == "shared_base"
    roles = {"rollout"} | {role for role in method.trained if role != "critic" or not shared}
    frozen = {copy.role for copy in method.copies if not copy.trained}
    if "reference" in frozen and config.train.reference != "adapter_off":
        roles.add("reference")
    if config.negatives.needs_judge:
        roles.add("judge")
    if writer_folder(config) is not None:
        roles.add("writer")
    return roles
