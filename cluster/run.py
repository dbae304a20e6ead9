"""Single runs: `quartet train`, `replay`, `eval` and `report`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray

from actors.reward import REWARD_FILE
from cluster import base_model, judges
from cluster.base_model import WorldRecipe
from cluster.compare import describe_environment, engine_spec, run_folder
from cluster.config import RunConfig, apply_overrides, read_yaml, to_yaml, validate
from cluster.console import Console
from cluster.driver import (
    Arm,
    EvaluateRound,
    OnlineRollouts,
    PromptSource,
    RolloutSource,
    RunStoppedError,
    run_arm,
)
from cluster.heldout import HeldOut
from cluster.session import Session
from cluster.sources import DrawnPrompts, FilePrompts, RecordedRollouts
from rewards.base import JudgeItem, Judgement
from trainers.comparison import Comparison, Evaluated, load, save
from trainers.data.datasets import load_samples
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.processing import check_model_folder
from trainers.data.records import Sample
from trainers.gallery import Gallery, load_gallery
from trainers.registry import make_method
from trainers.report import write_report


def train(config: RunConfig) -> int:
    """One method, online. Returns the exit code."""
    check_inputs(config)
    folder = run_folder(config.output, config.name or config.method.name)
    store = ImageStore(folder / "images")
    samples = None
    if config.data.path is not None:
        samples = read_data(config, store, folder)
    with Console(folder / "run.log") as console, _session(config, console) as session:
        arm, built = _prepare(session, config, folder, store)
        if samples is not None:
            console.line(f"{config.data.path}: {len(samples)} prompts")
        _describe_batches(console, config)
        with console.stage("start engines"):
            session.load_rollout(engine_spec(arm.model_dir, store, config))
            judges.load_judge(session, config.judge or str(built), store, config)
        prompts: PromptSource
        held_out: HeldOut | None = None
        if samples is None:
            prompts = DrawnPrompts(store, config.rollout.num_prompts, config.seed)
            held_out = HeldOut(store, config.eval.num_scenes, config.eval.num_curve_scenes)
        else:
            prompts = FilePrompts(samples, config.rollout.num_prompts, config.seed)
        return _run(session, arm, OnlineRollouts(session, arm, prompts), held_out)


def replay(run: Path, method: str, judge: str | None, overrides: dict[str, Any]) -> int:
    """Train `method` on the recorded rollouts of `run`, without generating."""
    recorded = _recorded_config(run)
    values = recorded.model_dump()
    for key in ("method", "judge", "name"):
        values.pop(key)
    values |= {"method": {"name": method}, "judge": judge, **overrides}
    values["method"]["name"] = method
    config = validate(RunConfig, values, str(run))
    files = len(sorted((run / "rounds").glob("round_*.msgpack")))
    if not files:
        raise UserError(f"{run}: no rounds/round_*.msgpack; give the folder of a finished run")
    config = config.model_copy(update={"rounds": min(config.rounds, files)})
    check_inputs(config)
    folder = run_folder(config.output, f"replay-{method}")
    with Console(folder / "run.log") as console, _session(config, console) as session:
        store = ImageStore(_image_root(run))
        arm, _ = _prepare(session, config, folder, store)
        new_judge: tuple[str, Callable[[Sequence[JudgeItem]], list[Judgement]]] | None = None
        if judge is not None:
            name = judges.load_judge(session, judge, store, config)
            actor = session.actor("judge")
            new_judge = (name, lambda items: list(ray.get(actor.judge.remote(items))))
        source = RecordedRollouts(run, console.warn, new_judge)
        return _run(session, arm, source, None, online=False)


def check_inputs(config: RunConfig) -> None:
    """Refuse what cannot work before a process or a folder exists."""
    if config.model is not None:
        check_model_folder(config.model)
    if config.judge is not None:
        judges.check_judge(config.judge)
    if config.data.path is not None and not Path(config.data.path).is_file():
        raise UserError(f"data.path: {config.data.path}: no such file")


def read_data(config: RunConfig, store: ImageStore, folder: Path) -> list[Sample]:
    """The data file's samples; the run folder goes again if the file is refused."""
    assert config.data.path is not None
    try:
        loaded = load_samples(
            Path(config.data.path), store, image_root=config.data.image_root
        )
    except UserError:
        import shutil

        shutil.rmtree(folder)
        raise
    print(loaded.description)
    for item in loaded.dropped:
        print(f"dropped row {item.row}: {item.reason}")
    return list(loaded.samples)


def evaluate_model(model: str | None, scenes: int, *, as_json: bool) -> int:
    """CHAIR and POPE of one model on the held-out scenes."""
    if model is not None:
        check_model_folder(model)
    folder = run_folder("runs", "eval")
    with Console(folder / "run.log") as console, Session(console=console) as session:
        if as_json:
            console.interactive = False
        store = ImageStore(folder / "images")
        model_dir = model or base_model.ensure(session, WorldRecipe()).base
        held_out = HeldOut(store, scenes, 0)
        defaults = RunConfig.model_validate({"method": {"name": "sft"}})
        with console.stage("evaluate"):
            session.load_rollout(engine_spec(model_dir, store, defaults))
            metrics, answers = held_out.full(session)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (folder / "answers.jsonl").write_text(
        "".join(
            json.dumps({"id": sample.id, "answer": text, "truth": sample.truth}) + "\n"
            for sample, text in zip(held_out.captions, answers, strict=True)
        )
    )
    if as_json:
        print(json.dumps(metrics, indent=2))
    else:
        for name, value in metrics.items():
            print(f"{name:32} {value:.4f}")
        print(f"answers: {folder / 'answers.jsonl'}")
    return 0


def write_run_report(run: Path) -> Path:
    """Write `report.html` of a run folder again from its JSON files."""
    comparison = load(run / "compare.json")
    gallery_file = run / "gallery.json"
    gallery = load_gallery(gallery_file) if gallery_file.is_file() else Gallery()
    target = run / "report.html"
    write_report(comparison, gallery, target)
    return target


def _session(config: RunConfig, console: Console) -> Session:
    return Session(
        num_threads=config.num_threads, console=console, num_ranks=config.train.num_ranks
    )


def _prepare(
    session: Session, config: RunConfig, folder: Path, store: ImageStore
) -> tuple[Arm, Path | None]:
    """The arm, and the built-in judge's folder if the run needs one of the built-in models."""
    session.console.line(f"run folder: {folder}")
    (folder / "config.yaml").write_text(to_yaml(config))
    environment = describe_environment(session)
    (folder / "env.json").write_text(json.dumps(environment, indent=2) + "\n")
    built = None
    if config.model is None or config.judge is None:
        built = base_model.ensure(session, WorldRecipe())
    model_dir = config.model or str(built.base if built else "")
    judge_dir = config.judge or str(built.judge if built else "")
    # The critic starts from the reward model where there is one, else from the policy.
    has_reward_model = (Path(judge_dir) / REWARD_FILE).is_file()
    arm = Arm(
        name=config.method.name,
        method=make_method(config.method),
        config=config,
        model_dir=model_dir,
        critic_dir=judge_dir if has_reward_model else model_dir,
        folder=folder,
        image_root=str(store.root),
    )
    return arm, built.judge if built else None


def _run(
    session: Session,
    arm: Arm,
    source: RolloutSource,
    held_out: HeldOut | None,
    *,
    online: bool = True,
) -> int:
    begun = time.perf_counter()
    comparison = Comparison(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=arm.config.seed,
        config=arm.config.model_dump(mode="json"),
        environment=json.loads((arm.folder / "env.json").read_text()),
        methods={arm.name: arm.result},
    )
    evaluate: EvaluateRound | None = None
    code = 0
    try:
        if held_out is not None:
            with session.console.stage("evaluate before training"):
                metrics, _ = held_out.full(session)
                comparison.base = Evaluated(metrics=dict(metrics))
            evaluate = lambda: held_out.quick(session)  # noqa: E731
        run_arm(session, arm, source, evaluate, online=online)
        if held_out is not None:
            with session.console.stage("evaluate after training"):
                metrics, _ = held_out.full(session)
                arm.result.metrics = dict(metrics)
        ray.get(session.trainer("policy").call("save", str(arm.folder / "final")))
    except RunStoppedError as error:
        arm.result.failure = str(error)
        session.console.warn(str(error))
        code = 1
    except KeyboardInterrupt:
        arm.result.failure = "interrupted"
        raise
    finally:
        comparison.seconds_total = time.perf_counter() - begun
        save(comparison, arm.folder / "compare.json")
        write_report(comparison, Gallery(), arm.folder / "report.html")
    session.console.comparison_table(comparison)
    session.console.line(f"model: {arm.folder / 'final'}")
    session.console.line(f"report: {arm.folder / 'report.html'}", "bold")
    return code


def _describe_batches(console: Console, config: RunConfig) -> None:
    """The derivation of the batch sizes, so that nobody has to guess what a step is."""
    rollouts = config.rollout.num_prompts * config.rollout.num_rollouts_per_prompt
    console.line(
        f"batches: {config.rollout.num_prompts} prompts x "
        f"{config.rollout.num_rollouts_per_prompt} rollouts = {rollouts} a round; up to "
        f"{config.method.minibatch_size} groups an optimiser step, {config.method.epochs} epochs, "
        f"{config.train.micro_batch_size} rows a forward, {config.train.num_ranks} rank(s)"
    )


def _recorded_config(run: Path) -> RunConfig:
    """The configuration of a run's folder, or of one arm's folder inside a comparison."""
    from cluster.config import CompareConfig

    if (run / "config.yaml").is_file():
        values = read_yaml(run / "config.yaml")
        if "arms" in values:
            raise UserError(f"{run}: this is a comparison; give one of its arms, e.g. {run}/ppo")
        return validate(RunConfig, values, str(run / "config.yaml"))
    parent = run.parent / "config.yaml"
    if not parent.is_file():
        raise UserError(f"{run}: no config.yaml; give the folder of a run")
    return validate(CompareConfig, read_yaml(parent), str(parent)).arm(run.name)


def _image_root(run: Path) -> Path:
    for folder in (run / "images", run.parent / "images"):
        if folder.is_dir():
            return folder
    raise UserError(f"{run}: its images folder is missing; rounds cannot be replayed without it")
