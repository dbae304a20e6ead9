"""The runs that faults strike: small, on a random model, in one session for all of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.arm import Arm
from cluster.config import RunConfig
from cluster.config_text import merge, validate
from tests.faults.catalogue import Fault
from trainers.data.record_file import read_records
from trainers.data.records import ScoredRollout

ROUNDS = 3
SMALL: dict[str, Any] = {
    "rounds": ROUNDS,
    "rollout": {
        "num_prompts": 6,
        "num_rollouts_per_prompt": 3,
        "max_tokens": 16,
        "kv_cache_mib": 32,
    },
    "train": {"parity_rollouts": 4, "checksum_every": 1, "parity_tolerance": 1e-3},
    "eval": {"num_scenes": 2, "num_curve_scenes": 2},
    "judge": "tests.faults.judge_functions:good",
    "judge_check": {"min_accuracy": 0.0},
    "num_threads": 1,
}
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo", "minibatch_size": 2, "pairs": {"margin": 0.0}},
    "rpo": {"name": "rpo", "minibatch_size": 2, "pairs": {"margin": 0.0}},
    "ppo": {"name": "ppo", "minibatch_size": 4, "critic_minibatch_size": 4},
    "nsft": {"name": "nsft", "minibatch_size": 2, "pairs": {"margin": 0.0}},
}


@dataclass
class Ground:
    """One session for all faults: its engine stays loaded between them."""

    session: Any
    root: Path
    model: str
    store: Any
    held_out: Any


def make_arm(ground: Ground, fault: Fault) -> Arm:
    """A run with the fault's method and settings, in a folder of its own."""
    from trainers.registry import make_method

    values = merge({**SMALL, "method": METHODS[fault.method]}, fault.settings)
    config = validate(RunConfig, values | {"model": ground.model})
    folder = ground.root / fault.id.replace(" ", "_")
    folder.mkdir()
    return Arm(
        name=fault.method,
        method=make_method(config.method),
        config=config,
        model_dir=ground.model,
        critic_dir=ground.model,
        folder=folder,
        image_root=str(ground.store.root),
    )


def run(ground: Ground, arm: Arm) -> str | None:
    """The real loop, from loading engines to the final model; the error, if it ends with one."""
    from cluster import judges
    from cluster.compare import engine_spec
    from cluster.driver import run_arm
    from cluster.failures import RunFailedError, RunStoppedError, reported
    from cluster.negatives import rollout_source
    from cluster.sources import DrawnPrompts

    session, config = ground.session, arm.config
    prompts = DrawnPrompts(ground.store, config.rollout.num_prompts, config.seed)
    spec = engine_spec(ground.model, ground.store, config)
    try:
        with reported(session.console, arm.folder):
            session.wait.deadlines = config.deadlines
            loaded = session.served("rollout").recipe
            if loaded.load is None or loaded.load().args != (spec,):
                session.load_rollout(spec)
            judges.load_judge(session, config.judge, ground.store, config)
            source = rollout_source(session, arm, prompts)
            run_arm(session, arm, source, lambda: ground.held_out.quick(session))
    except (RunStoppedError, RunFailedError) as error:
        return str(error)
    return None


def check_finished(arm: Arm) -> None:
    """All rounds are there, each rollout once, made by the weights of its round."""
    assert [point.round for point in arm.result.curve] == list(range(1, ROUNDS + 1))
    assert arm.result.account.asked == ROUNDS * 18
    seen: set[str] = set()
    for number in range(1, ROUNDS + 1):
        records = read_records(arm.folder / "rounds" / f"round_{number:06d}.msgpack").records
        rollouts = [item.rollout for item in records if isinstance(item, ScoredRollout)]
        assert len(rollouts) == 18
        assert {item.policy_version for item in rollouts} == {number}
        assert not seen & {item.id for item in rollouts}
        seen |= {item.id for item in rollouts}
    lines = [json.loads(line) for line in (arm.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, ROUNDS + 1))
    assert all(line["parity"] < 1e-3 for line in lines)
    assert (arm.folder / "final" / "model.safetensors").is_file()
