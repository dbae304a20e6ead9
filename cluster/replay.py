"""`quartet replay`: train a method on the recorded rollouts of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import judges
from cluster.base_model import WorldRecipe
from cluster.config import CompareConfig, RunConfig
from cluster.config_text import merge, read_yaml, validate
from cluster.driver import ask_judge, run_arm
from cluster.heldout import HeldOut
from cluster.run import (
    Run,
    check_inputs,
    finish,
    make_session,
    measure,
    new_run,
    prepare,
    rollout_spec,
)
from cluster.sources import RecordedRollouts, Rejudge
from cluster.sync import sync
from trainers.data.errors import UserError
from trainers.data.images import ImageStore


def replay(
    folder: Path,
    method: str,
    judge: str | None,
    overrides: Mapping[str, Any],
    *,
    debug: bool = False,
) -> int:
    """Train `method` on what `folder` recorded, from the model that the run started from.

    Nothing is generated. On the built-in task the result is evaluated at the end, which takes an
    engine. Returns the exit code.
    """
    recorded, recipe = recorded_config(folder)
    rounds = len(list((folder / "rounds").glob("round_*.msgpack")))
    if not rounds:
        raise UserError(f"{folder}: no rounds/round_*.msgpack; give the folder of a finished run")
    config = replay_config(recorded, method, judge, overrides, str(folder))
    config = config.model_copy(update={"rounds": min(config.rounds, rounds)})
    check_inputs(config)
    store = ImageStore(image_root(folder))
    with (
        new_run(config, config.name or f"replay-{method}", debug=debug) as (console, target),
        make_session(config, console, debug=debug) as session,
    ):
        run = prepare(session, config, target, store, recipe)
        rejudge: Rejudge | None = None
        if judge is not None:
            with console.stage("start judge"):
                name = judges.load_judge(session, config.judge or judge, store, config)
            rejudge = (name, lambda items: ask_judge(session, run.arm, items))
        source = RecordedRollouts(
            folder,
            console.warn,
            rejudge,
            result=run.arm.result,
            max_dropped_share=config.data.max_dropped_share,
        )
        if config.data.path is None:
            run.held_out = HeldOut(store, config.eval.num_scenes, 0)
        return finish(run, lambda: _offline(run, source))


def _offline(run: Run, source: RecordedRollouts) -> None:
    run_arm(run.session, run.arm, source, online=False)
    if run.held_out is not None:
        with run.session.console.stage("start engine"):
            run.session.load_rollout(rollout_spec(run))
        measure(run, "base")
        sync(run.session, run.arm)
        measure(run, run.arm.name)


def replay_config(
    recorded: RunConfig,
    method: str,
    judge: str | None,
    overrides: Mapping[str, Any],
    source: str,
) -> RunConfig:
    """The recorded settings, but for method, judge and what was overridden.

    A recorded method keeps its settings when it is the same one.
    """
    values = recorded.model_dump()
    if recorded.method.name != method:
        values["method"] = {"name": method}
    values |= {"name": "", "judge": judge if judge is not None else values["judge"]}
    # A replay has no engine between its rounds, so nothing can be said of them.
    values["eval"]["keep_best"] = None
    merged = merge(values, overrides)
    if merged["method"]["name"] != method:
        raise UserError(f"method.name: {merged['method']['name']!r} against --method {method}")
    if merged["eval"].get("keep_best") is not None:
        raise UserError(
            "eval.keep_best: a replay evaluates once, at its end, so it cannot compare rounds; "
            "leave it out"
        )
    return validate(RunConfig, merged, source)


def recorded_config(folder: Path) -> tuple[RunConfig, WorldRecipe]:
    """The configuration of a run's folder, or of one arm's folder inside a comparison, and the
    recipe of its built-in models.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run")
    own, parent = folder / "config.yaml", folder.parent / "config.yaml"
    if own.is_file():
        values = read_yaml(own)
        if "arms" in values:
            raise UserError(
                f"{folder}: this is a comparison; give one of its arms, e.g. {folder / 'dpo'}"
            )
        return validate(RunConfig, values, str(own)), WorldRecipe()
    if not parent.is_file():
        raise UserError(f"{folder}: no config.yaml; give the folder of a run")
    config = validate(CompareConfig, read_yaml(parent), str(parent))
    if folder.name not in config.arms:
        raise UserError(f"{folder}: not an arm of {parent}; arms: {', '.join(config.arms)}")
    return config.arm(folder.name), WorldRecipe.quick() if config.quick else WorldRecipe()


def image_root(folder: Path) -> Path:
    """Where the run's images are: beside its rounds, or one up for an arm of a comparison."""
    for candidate in (folder / "images", folder.parent / "images"):
        if candidate.is_dir():
            return candidate
    raise UserError(f"{folder}: its images folder is missing; it cannot be replayed without it")
