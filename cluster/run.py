"""Single runs: `quartet train`, `eval` and `report`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from actors.engine import EngineSpec
from cluster import base_model, judge_check, judges
from cluster.arm import Arm
from cluster.base_model import WorldRecipe
from cluster.batches import describe_batches
from cluster.compare import describe_environment, engine_spec, run_folder
from cluster.config import RunConfig
from cluster.config_text import to_yaml
from cluster.console import Console
from cluster.debug_session import DebugSession
from cluster.driver import EvaluateRound, PromptSource, run_arm
from cluster.failures import RunStoppedError, reported, surfaced
from cluster.heldout import HeldOut
from cluster.negatives import rollout_source
from cluster.placement_config import demand, demand_of
from cluster.preemption import Preempted, preemptible, recognised
from cluster.residency import awake, train_spec
from cluster.run_start import START, Start
from cluster.session import Session
from cluster.sources import DataFile, DrawnPrompts, FilePrompts, read_data
from cluster.text_model import writer_folder
from cluster.writer import load_writer
from rewards.config import AnyJudge
from trainers.checkpoint import CHECKPOINTS
from trainers.comparison import Comparison, Evaluated, load, save, write_atomic
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.model_folder import check_model_folder, longest_context
from trainers.data.processing import Processing
from trainers.data.records import Sample
from trainers.gallery import Gallery, gallery_item, load_gallery
from trainers.json_files import load_as
from trainers.registry import make_method
from trainers.report import write_report

GALLERY_SCENES = 12


@dataclass(slots=True)
class Run:
    """One run while it is being made."""

    session: Session
    config: RunConfig
    folder: Path
    store: ImageStore
    arm: Arm
    judge: AnyJudge | None
    """None where no answer is judged."""
    """Its settings, with the folders of built-in models filled in."""
    held_out: HeldOut | None = None
    captions: dict[str, list[str]] = field(default_factory=dict)
    base_metrics: dict[str, float] = field(default_factory=dict)
    judge_metrics: dict[str, float] = field(default_factory=dict)


def train(config: RunConfig, resumed: Path | None = None, *, debug: bool = False) -> int:
    """One method, online; with the folder of a `resumed` run its next rounds, with `debug` in this
    process alone. Returns the exit code.

    Raises:
        Preempted: SIGTERM stopped it; the folder can be resumed.
    """
    check_inputs(config)
    name = config.name or config.method.name
    with new_run(config, name, resumed, debug=debug) as (console, folder):
        if config.checkpoint.every:
            (folder / CHECKPOINTS).mkdir(exist_ok=True)  # it can be resumed from now on
        store = ImageStore(folder / "images")
        data = read_data(config.data, store, console) if config.data.path else None
        if data is not None and config.model is not None:  # before anything slow starts
            data = data.fitting(Processing(config.model, store), config)
        with (
            make_session(config, console, debug=debug) as session,
            preemptible(f"quartet train --resume {folder}"),
        ):
            run = prepare(session, config, folder, store)
            prompts: PromptSource
            if data is None:
                run.held_out = HeldOut(
                    store,
                    config.eval.num_scenes,
                    config.eval.num_curve_scenes,
                    separate_curve=config.eval.keep_best is not None,
                )
                prompts = DrawnPrompts(
                    store,
                    config.rollout.num_prompts,
                    config.seed,
                    annotated=config.negatives.needs_annotation,
                )
            else:
                if config.model is None:
                    data = data.fitting(Processing(run.arm.model_dir, store), config)
                run.arm.result.dropped.update(data.dropped)
                prompts = FilePrompts(
                    data.index,
                    config.rollout.num_prompts,
                    config.seed,
                    dropped=run.arm.result.dropped,
                    max_dropped=config.data.max_dropped_share,
                )
            describe_batches(session, run.arm)
            with console.stage("start engines"):
                session.load_rollout(rollout_spec(run, data))
                load_writer(session, run.arm)
                if run.judge is not None:
                    judges.load_judge(session, run.judge, store, config)
            known = _samples(data) if data is not None else None
            return finish(run, lambda: _online(run, prompts, known))


def _samples(data: DataFile) -> Iterator[Sample]:
    """The file's samples, each read when it is asked for."""
    for index in range(len(data.index)):
        yield from (item for item in data.index.take([index]) if isinstance(item, Sample))


def _online(run: Run, prompts: PromptSource, samples: Iterable[Sample] | None) -> None:
    evaluate: EvaluateRound | None = None
    if (held_out := run.held_out) is not None:
        evaluate = lambda: held_out.quick(run.session, run.arm.method.ask)  # noqa: E731
    if not read_start(run):
        if run.judge is not None:
            run.judge_metrics = judge_check.check(run.session, run.arm, run.store, samples)
        if held_out is not None:
            measure(run, "base")
        write_start(run)
    run_arm(run.session, run.arm, rollout_source(run.session, run.arm, prompts), evaluate)
    if held_out is not None:
        measure(run, run.arm.name)


def read_start(run: Run) -> bool:
    """What was measured before the first round, if this is a resumed run that came so far."""
    path = run.folder / START
    if not path.is_file():
        return False
    start = load_as(Start, path, "remove it to measure anew")
    run.base_metrics, run.judge_metrics = start.base, start.judge
    run.captions.update(start.captions)
    return True


def write_start(run: Run) -> None:
    """Keep it, so that it is measured once."""
    start = Start(base=run.base_metrics, judge=run.judge_metrics, captions=run.captions)
    save(start, run.folder / START)


def check_inputs(config: RunConfig) -> None:
    """Refuse what cannot work before a process or a folder exists."""
    if config.model is not None:
        longest = longest_context(check_model_folder(config.model))
        if longest is not None and config.rollout.max_model_len > longest:
            raise UserError(
                f"rollout.max_model_len={config.rollout.max_model_len}: {config.model} takes at "
                f"most {longest} tokens"
            )
    if config.judge is not None:
        judges.check_judge(config.judge, sleep=config.rollout.sleep)
    writer_folder(config)
    by_rules = "injected" in config.negatives.rejected and config.negatives.injector is None
    if by_rules and config.data.path is not None:
        raise UserError(
            "negatives.injector: the built-in rules only know the drawn world; give the folder of "
            "a text model"
        )
    if config.data.path is None:
        if "data" in config.negatives.rejected:
            raise UserError(
                "negatives.rejected: drawn scenes have no rejected answer; give --data with a "
                "column `rejected`, or use injected"
            )
        return
    if config.judge is None and config.negatives.needs_judge:
        raise UserError(
            "judge: the built-in judge only knows the drawn world; with data of your own give "
            "--judge, a critique model's folder or module:function"
        )
    if config.judge is not None and (reason := judges.needs_drawn_world(config.judge)):
        raise UserError(f"{reason}; with data of your own give a model's folder")
    if not Path(config.data.path).is_file():
        raise UserError(f"data.path: {config.data.path}: no such file")
    if config.data.image_root is not None and not Path(config.data.image_root).is_dir():
        raise UserError(f"data.image_root: {config.data.image_root}: no such folder")


@contextmanager
def new_run(
    config: RunConfig, name: str, resumed: Path | None = None, *, debug: bool = False
) -> Iterator[tuple[Console, Path]]:
    """A run folder, or a `resumed` run's, with its settings and its log. Failures become one line;
    see `cluster.failures.reported`. With `debug` they stay what they are, and no bar is in a
    debugger's way.
    """
    folder = resumed or run_folder(config.output, name)
    write_atomic(folder / "config.yaml", to_yaml(config))
    with (
        Console(folder / "run.log", interactive=False if debug else None) as console,
        nullcontext() if debug else reported(console, folder, new=resumed is None),
    ):
        yield console, folder


def make_session(config: RunConfig, console: Console, *, debug: bool = False) -> Session:
    """The run's Ray session; with `debug` its actors are objects of this process."""
    kind = DebugSession if debug else Session
    return kind(
        num_threads=config.num_threads,
        console=console,
        demand=demand(config),
        deadlines=config.deadlines,
    )


def prepare(
    session: Session,
    config: RunConfig,
    folder: Path,
    store: ImageStore,
    recipe: WorldRecipe | None = None,
) -> Run:
    """Write what the run is made of, and find the models it starts from."""
    console = session.console
    console.line(f"run folder: {folder}")
    environment = describe_environment(session)
    (folder / "env.json").write_text(json.dumps(environment, indent=2) + "\n")
    model_dir, built, judged = config.model, None, config.negatives.needs_judge
    if model_dir is None or (judged and judges.needs_builtin(config.judge)):
        built = base_model.ensure(session, recipe or WorldRecipe())
        model_dir = model_dir or str(built.base)
    judge = judges.resolve(config.judge, built) if judged else None
    critic_dir = judges.critic_folder(judge, model_dir) if judge else model_dir
    method = make_method(config.method)
    arm = Arm(
        name=config.method.name,
        method=method,
        config=config,
        model_dir=model_dir,
        critic_dir=critic_dir,
        folder=folder,
        image_root=str(store.root),
        judge_dirs=judges.folders(judge) if judge else (),
    )
    if "critic" in method.trained:
        start = train_spec(arm, "critic").model_dir
        console.line(f"critic starts from {'the policy' if start == model_dir else start}")
    return Run(session, config, folder, store, arm, judge)


def rollout_spec(run: Run, data: DataFile | None = None) -> EngineSpec:
    """What the rollout engine loads; room for as many images as a sample of `data` has."""
    spec = engine_spec(run.arm.model_dir, run.store, run.config)
    return spec if data is None else replace(spec, max_images=max(1, data.max_images))


def measure(run: Run, name: str) -> None:
    """Held-out metrics of what the engine holds now, as `base` or as the arm's result."""
    assert run.held_out is not None
    title = "evaluate before training" if name == "base" else "evaluate after training"
    with run.session.console.stage(title), awake(run.session, run.arm, "rollout"):
        metrics, run.captions[name] = run.held_out.full(run.session, run.arm.method.ask)
    if name == "base":
        run.base_metrics = dict(metrics)
    else:
        run.arm.result.metrics = dict(metrics)


def finish(run: Run, work: Callable[[], None]) -> int:
    """Do the work, then write what there is, however the work ended. Returns the exit code."""
    begun = time.perf_counter()
    arm, console = run.arm, run.session.console
    code = 0
    refused = False
    try:
        with recognised(), surfaced():
            work()
    except RunStoppedError as error:
        arm.stopped(str(error))
        console.warn(str(error))
        code = 1
    except BaseException as error:
        # Of a resumed run that cannot go on, the earlier results stay.
        refused = isinstance(error, UserError) and arm.round == 0
        known = {KeyboardInterrupt: "interrupted", Preempted: "stopped by SIGTERM"}
        arm.result.failure = known.get(type(error), type(error).__name__)
        raise
    finally:
        arm.result.seconds_by_phase = arm.clock.seconds()
        comparison = Comparison(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seed=run.config.seed,
            config=run.config.model_dump(mode="json"),
            environment=json.loads((run.folder / "env.json").read_text()),
            base=Evaluated(metrics=dict(run.base_metrics)),
            methods={arm.name: arm.result},
            judge=dict(run.judge_metrics),
            seconds_total=time.perf_counter() - begun,
        )
        if not refused:
            write_results(run, comparison)
    console.comparison_table(comparison)
    for reason, number in arm.result.dropped.items():
        console.line(f"dropped {number}: {reason}")
    if code == 0:
        best = arm.result.best_round
        which = "" if best is None else f" (round {best}, best by {run.config.eval.keep_best})"
        console.line(f"model: {run.folder / 'final'}{which}")
    console.line(f"report: {run.folder / 'report.html'}", "bold")
    return code


def write_results(run: Run, comparison: Comparison) -> None:
    """`compare.json`, `gallery.json` and `report.html`."""
    items = []
    scenes = run.held_out.captions[:GALLERY_SCENES] if run.held_out and run.captions else []
    for index, sample in enumerate(scenes):
        answers = {name: texts[index] for name, texts in run.captions.items()}
        png = run.store.read_bytes(sample.images[0])
        items.append(gallery_item(png, sample.truth or {}, answers, sample.prompt[0].text))
    gallery = Gallery(items=items)
    save(comparison, run.folder / "compare.json")
    save(gallery, run.folder / "gallery.json")
    write_report(comparison, gallery, run.folder / "report.html")


def evaluate_model(config: RunConfig, scenes: int, *, as_json: bool) -> int:
    """CHAIR and POPE of one model on the held-out scenes."""
    check_inputs(config)
    folder = run_folder(config.output, "eval")
    with Console(folder / "run.log", quiet=as_json) as console, reported(console, folder):
        store = ImageStore(folder / "images")
        with Session(console=console, demand=demand_of(config, ("rollout",))) as session:
            model_dir = config.model or base_model.ensure(session, WorldRecipe()).base
            held_out = HeldOut(store, scenes, 0)
            with console.stage("evaluate"):
                session.load_rollout(engine_spec(model_dir, store, config))
                metrics, answers = held_out.full(session)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    with (folder / "answers.jsonl").open("w") as file:
        for sample, text in zip(held_out.captions, answers, strict=True):
            line = {"id": sample.id, "answer": text, "truth": sample.truth}
            file.write(json.dumps(line) + "\n")
    if as_json:
        print(json.dumps(metrics, indent=2))
    else:
        for name, value in metrics.items():
            print(f"{name:32} {value:.4f}")
        print(f"answers: {folder / 'answers.jsonl'}")
    return 0


def write_run_report(run: Path) -> Path:
    """Write `report.html` of a run folder again from its JSON files."""
    if not (run / "compare.json").is_file():
        raise UserError(f"{run}: no compare.json; give the folder of a run")
    comparison = load(run / "compare.json")
    gallery_file = run / "gallery.json"
    gallery = load_gallery(gallery_file) if gallery_file.is_file() else Gallery()
    target = run / "report.html"
    write_report(comparison, gallery, target)
    return target
