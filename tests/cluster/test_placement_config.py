"""Settings of placement: one truth for ranks and engines, contradictions refused."""

from __future__ import annotations

import pytest

from cluster.config import CompareConfig, RunConfig
from cluster.config_text import validate
from cluster.placement import Request
from cluster.placement_config import demand
from trainers.data.errors import UserError


def config(method: str = "ppo", **values: object) -> RunConfig:
    return validate(RunConfig, {"method": {"name": method}, **values}, "test")


def test_gpus_of_a_role_set_its_ranks_and_engines():
    found = config(placement={"gpus": {"policy": 4, "rollout": 4}}, rollout={"tensor_parallel": 2})
    assert found.train.num_ranks == 4 and found.rollout.num_engines == 2
    assert demand(found).requests == (
        Request("policy", 4),
        Request("critic", 4),
        Request("reference", 1),
        Request("rollout", 2, 2),
        Request("judge", 1),
    )


def test_ranks_and_engines_need_no_gpus_beside_them():
    found = config("dpo", train={"num_ranks": 2}, rollout={"num_engines": 3})
    assert [(r.role, r.num_gpus) for r in demand(found).requests] == [
        ("policy", 2),
        ("reference", 1),
        ("rollout", 3),
        ("judge", 1),
    ]


def test_only_roles_of_the_run_are_asked_for():
    roles = {r.role for r in demand(config("sft")).requests}
    assert roles == {"policy", "rollout", "judge"}
    lora = {"lora_rank": 4, "reference": "adapter_off", "critic": "shared_base"}
    roles = {r.role for r in demand(config("ppo", train=lora)).requests}
    assert roles == {"policy", "rollout", "judge"}
    pair = demand(config("sft"), config("ppo"))
    assert [r.role for r in pair.requests] == ["policy", "critic", "reference", "rollout", "judge"]


def test_the_critic_may_have_its_own_number():
    found = config(placement={"gpus": {"critic": 1, "judge": 0}}, train={"num_ranks": 2})
    numbers = {r.role: r.num_gpus for r in demand(found).requests}
    assert numbers == {"policy": 2, "critic": 1, "reference": 1, "rollout": 1, "judge": 0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"train": {"num_ranks": 2}, "placement": {"gpus": {"policy": 4}}},
            r"train\.num_ranks=2 contradicts placement\.gpus\.policy=4",
        ),
        (
            {"rollout": {"tensor_parallel": 2}, "placement": {"gpus": {"rollout": 3}}},
            r"placement\.gpus\.rollout=3 contradicts",
        ),
        (
            {"rollout": {"num_engines": 2}, "placement": {"gpus": {"rollout": 3}}},
            r"rollout\.num_engines=2 x rollout\.tensor_parallel=1; make it their product",
        ),
        ({"placement": {"gpus": {"judge": 2}}}, r"placement\.gpus\.judge=2: .* give it 1, or 0"),
        ({"placement": {"gpus": {"policy": 0}}}, r"placement\.gpus\.policy=0: give it 1 or more"),
        ({"placement": {"gpus": {"judges": 1}}}, r"'judges'"),
        ({"placement": {"colocate": [["policy"], ["policy", "judge"]]}}, r"names policy more than"),
        ({"placement": {"wait_seconds": 0}}, r"placement\.wait_seconds"),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        config(**values)


def test_a_comparison_has_one_placement():
    values = {"placement": {"gpus": {"policy": 2, "rollout": 2}}}
    found = validate(CompareConfig, values, "test")
    assert found.train.num_ranks == found.arm("ppo").train.num_ranks == 2
    assert found.arm("dpo").rollout.num_engines == 2
    for key in ("placement", "rollout"):
        own = {"wait_seconds": 1} if key == "placement" else {"num_engines": 3}
        with pytest.raises(UserError, match=rf"arms\.ppo\.{key}"):
            validate(CompareConfig, {"arms": {"ppo": {key: own}}}, "test")


def test_a_written_configuration_is_read_back():
    found = config(placement={"gpus": {"policy": 2}})
    assert validate(RunConfig, found.model_dump(mode="json"), "test") == found
