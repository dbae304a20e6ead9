"""`quartet eval` on a benchmark, or with best-of-N or calibration on the drawn world.

The model answers on vLLM, greedily; its answers are written in the benchmark's own format, so that
the original scripts can score them again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import base_model, judges
from cluster.answering import (
    Chosen,
    ask,
    choose_best,
    read_samples,
    scoring_spec,
)
from cluster.base_model import WorldRecipe
from cluster.compare import engine_spec, run_folder
from cluster.config import RunConfig
from cluster.console import Console
from cluster.drawn_benchmark import DrawnWorld
from cluster.eval_options import Request
from cluster.eval_output import finite, show
from cluster.evaluation import Evaluation
from cluster.failures import reported
from cluster.placement_config import demand_of
from cluster.session import Session
from cluster.yes_no import calibrate
from trainers.benchmarks.questions import Benchmark, Options
from trainers.benchmarks.registry import BENCHMARKS
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.model_folder import check_model_folder, longest_context

LONGEST_CONTEXT = 4096
"""Of the engine, where `rollout.max_model_len` is not given and the model takes so much."""
BEST_OF_TEMPERATURE = 0.7
"""RLAIF-V's, where `rollout.temperature` is not given."""


def evaluate(request: Request, config: RunConfig) -> int:
    """Answer and measure. Returns the exit code."""
    check(request)
    given: Benchmark | None = None
    if request.benchmark is not None:
        assert request.data is not None
        given = BENCHMARKS[request.benchmark](request.data, _options(request))
        _check_calibration(request, given)
    folder = run_folder(config.output, f"eval-{request.benchmark or 'drawn'}")
    with (
        Console(folder / "run.log", quiet=request.as_json) as console,
        reported(console, folder),
    ):
        store = ImageStore(folder / "images")
        needed = demand_of(config, ("rollout", "judge", "reference"))
        with Session(num_threads=config.num_threads, console=console, demand=needed) as session:
            built = ""
            if request.model is None or (request.best_of and request.reference is None):
                built = str(base_model.ensure(session, WorldRecipe()).base)
            benchmark: Benchmark = given or DrawnWorld(store, request.scenes)
            run = Evaluation(
                request=request,
                config=config,
                folder=folder,
                store=store,
                session=session,
                benchmark=benchmark,
                model_dir=request.model or built,
                reference=request.reference or built,
                samples=read_samples(session, benchmark.questions, store),
                notes=list(benchmark.notes),
            )
            _check_reference(run)
            _start(run)
            extra = _answer(run)
            if request.calibrate is not None:
                extra |= calibrate(run)
    result = {
        "benchmark": benchmark.name,
        "model": run.model_dir,
        "questions": len(benchmark.questions),
        "notes": run.notes,
        "metrics": run.columns,
        **extra,
    }
    (folder / "metrics.json").write_text(json.dumps(finite(result), indent=2) + "\n")
    show(request, folder, run.columns, run.notes, result)
    return 0


def check(request: Request) -> None:
    """Refuse folders that cannot work before anything starts."""
    for folder in (request.model, request.reference):
        if folder is not None:
            check_model_folder(folder)
    if request.judge is not None:
        judges.check_judge(request.judge)


def _check_reference(run: Evaluation) -> None:
    """Two different models that read the same tokens."""
    if run.request.best_of is None:
        return
    advice = "give the model that training started from"
    if Path(run.model_dir).resolve() == Path(run.reference).resolve():
        raise UserError(
            f"--reference {run.reference} is the evaluated model itself, so that every answer "
            f"would have the reward 0; {advice}"
        )
    if _tokens(run.model_dir) != _tokens(run.reference):
        raise UserError(
            f"--reference {run.reference}: its tokenizer is not that of {run.model_dir}, so they "
            f"cannot score the same tokens; {advice}"
        )


def _tokens(folder: str) -> object:
    """What the folder's tokenizer calls its tokens, by id."""
    file = Path(folder) / "tokenizer.json"
    return json.loads(file.read_text())["model"].get("vocab") if file.is_file() else None


def _check_calibration(request: Request, benchmark: Benchmark) -> None:
    if request.calibrate is not None and not any(q.label for q in benchmark.questions):
        raise UserError(f"--calibrate: {benchmark.name} has no yes/no questions here")


def _options(request: Request) -> Options:
    return Options(
        split=request.split,
        limit=request.limit,
        words=request.words,
        prompt=request.prompt,
        max_tokens=request.max_tokens,
    )


def _start(run: Evaluation) -> None:
    """Engine and, where the benchmark needs one, judge."""
    config = run.config
    spec = engine_spec(run.model_dir, run.store, config)
    if "max_model_len" not in config.rollout.model_fields_set:
        longest = longest_context(check_model_folder(run.model_dir)) or LONGEST_CONTEXT
        spec = replace(spec, max_model_len=min(longest, LONGEST_CONTEXT))
    with run.console.stage("start engine"):
        run.session.load_rollout(spec)
        if run.request.judge is not None:
            judge = judges.load_judge(run.session, run.request.judge, run.store, config)
            run.notes.append(f"judge: {judge}")


def _answer(run: Evaluation) -> dict[str, Any]:
    """Greedy answers, or the first and the best of N; what was said goes into files."""
    questions, number = run.benchmark.questions, run.request.best_of
    if number is None:
        greedy = [group[0] for group in ask(run.session, questions, run.samples)]
        run.measure("greedy", greedy)
        return {}
    rollout = run.config.rollout
    given = "temperature" in rollout.model_fields_set
    temperature = rollout.temperature if given else BEST_OF_TEMPERATURE
    groups = ask(
        run.session,
        questions,
        run.samples,
        number=number,
        temperature=temperature,
        seed=run.config.seed,
    )
    specs = (
        scoring_spec(run.model_dir, run.store, run.config),
        scoring_spec(run.reference, run.store, run.config),
    )
    chosen = choose_best(run.session, run.samples, groups, specs=specs)
    run.measure("first sample", [each.rollouts[0] for each in chosen], "first_")
    run.measure(f"best of {number}", [each.best for each in chosen])
    run.notes.append(
        f"best of {number} at temperature {temperature:g} by RLAIF-V's self-feedback against "
        f"{run.reference}"
    )
    return {"best_of": _reward_summary(chosen, temperature)}


def _reward_summary(chosen: Sequence[Chosen], temperature: float) -> dict[str, float]:
    first = [each.rewards[0] for each in chosen]
    top = [max(each.rewards) for each in chosen]
    return {
        "number": float(len(chosen[0].rewards)),
        "temperature": temperature,
        "mean_reward_first": sum(first) / len(first),
        "mean_reward_best": sum(top) / len(top),
        "first_is_best": sum(f == t for f, t in zip(first, top, strict=True)) / len(first),
    }
