"""`quartet reward train | score | bench`: make, use and measure critique-based reward models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.reward import load_reward_settings
from actors.reward_training import ReasonedPairs, pair_rows
from actors.streams import CritiqueRewardObjective
from actors.train_spec import TrainSpec
from cluster import base_model, judges
from cluster.base_model import WorldRecipe
from cluster.compare import run_folder
from cluster.config import RunConfig
from cluster.console import Console
from cluster.failures import reported
from cluster.reward_config import RewardTrainConfig
from cluster.session import Session
from rewards.base import JudgeItem, Judgement, known_item
from rewards.config import AnyJudge, ClaimsConfig, CritiqueConfig
from trainers.benchmarks.reward_bench import reward_bench_metrics
from trainers.data.datasets import Images
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.model_folder import check_model_folder
from trainers.data.preferences import ReasonedPair, read_pairs, row_sample
from trainers.data.row_files import open_rows
from trainers.data.rows import answer
from trainers.method import Optimisation

COLUMNS = ("response", "completion", "chosen", "rejected")
"""Columns of a file whose texts are scored."""


def train(file: Path, model: str, target: Path, config: RewardTrainConfig) -> int:
    """Train on `file` from the VLM folder `model`; the reward model's folder is `target`."""
    check_model_folder(model)
    if target.exists():
        raise UserError(f"{target}: exists already; give a new folder")
    with _workplace("reward-train", config.num_threads) as (console, session, store):
        pairs, dropped = read_pairs(file, store)
        report_dropped(console, file, dropped)
        training, held_out = split(pairs, config.held_out_share)
        ties = sum(pair.is_tie for pair in training)
        reasons = sum(pair.has_reasons for pair in training)
        console.line(
            f"{file.name}: {len(training)} pairs to train on ({ties} ties, {reasons} with reasons "
            f"on both sides), {len(held_out)} held out"
        )
        steps = max(1, config.epochs * len(training) // config.batch_size)
        with session.builder() as ranks:
            world = len(ranks.actors)
            if config.batch_size % world:
                raise UserError(
                    f"batch_size={config.batch_size}: {world} processes share a batch; set a "
                    f"multiple of {world}, or num_threads=1"
                )
            spec = TrainSpec(
                role="reward",
                model_dir=model,
                image_root=str(store.root),
                bf16=config.bf16,
                frozen=() if config.train_vision else ("vision",),
            )
            ranks.ask("load", spec, limit="load")
            stream = ReasonedPairs(
                training, config.request, config.batch_size, config.micro_batch_size, config.seed
            )
            objective = CritiqueRewardObjective(
                config.score_weight, config.critique_weight, config.center_coef, config.tie_weight
            )
            optimisation = Optimisation(
                learning_rate=config.learning_rate,
                epochs=1,
                minibatch_size=config.batch_size,
                warmup_steps=int(config.warmup_share * steps),
                total_steps=steps,
            )
            base_model.run_stream(
                session, "train reward model", ranks, stream, objective, optimisation
            )
            settings = {
                "request": config.request,
                "max_critique_tokens": config.max_critique_tokens,
            }
            partial = target.with_name(f".{target.name}.partial")
            ranks.ask("save", str(partial), settings, limit="save")
            partial.replace(target)
        if held_out:
            judge = CritiqueConfig(model=str(target))
            run = _run_config(judge, config.max_model_len, config.bf16)
            judges.load_judge(session, judge, store, run)
            metrics = measure(session, judge, held_out)
            text = json.dumps({"training_pairs": len(training), **metrics}, indent=2)
            (target / "reward" / "bench.json").write_text(text + "\n")
            show(metrics)
    print(f"reward model: {target}")
    return 0


def split(
    pairs: Sequence[ReasonedPair], share: float
) -> tuple[list[ReasonedPair], list[ReasonedPair]]:
    """Pairs to train on and pairs held out: whole questions, the last ones of the file."""
    groups = list(dict.fromkeys(pair.group for pair in pairs))
    number = round(share * len(groups))
    kept_back = set(groups[len(groups) - number :])
    training = [pair for pair in pairs if pair.group not in kept_back]
    if not training:
        raise UserError(f"held_out_share={share:g} leaves nothing to train on; lower it")
    return training, [pair for pair in pairs if pair.group in kept_back]


def score(file: Path, reference: str, target: Path, max_model_len: int) -> int:
    """Judge every answer of `file`; one line each in `target`. 1 if any could not be judged."""
    judge = parse_judge(reference)
    with _workplace("reward-score", None) as (_, session, store):
        items: list[tuple[int, str, JudgeItem]] = []
        images = Images(store, file.parent)
        for number, _, row in open_rows(file).rows():
            sample = row_sample(row, f"{file.stem}-{number}", images)
            texts = {column: answer(row, column) for column in COLUMNS}
            items += [
                (number, column, known_item(sample, text)) for column, text in texts.items() if text
            ]
        if not items:
            raise UserError(f"{file}: no column of {', '.join(COLUMNS)}; nothing to score")
        judgements = _judge(session, judge, store, max_model_len, [item for *_, item in items])
        with target.open("w") as out:
            for (number, column, item), judgement in zip(items, judgements, strict=True):
                line = {"row": number, "column": column, "text": item.rollout.text}
                out.write(json.dumps(line | asdict(judgement)) + "\n")
    failed = sum(judgement.score is None for judgement in judgements)
    print(f"{len(items)} answers, {failed} not judged: {target}")
    return int(failed > 0)


def bench(file: Path, reference: str, max_model_len: int, *, as_json: bool) -> int:
    """ACC and ACC+ of a judge on a file of RewardBench's layout."""
    judge = parse_judge(reference)
    with _workplace("reward-bench", None, quiet=as_json) as (console, session, store):
        pairs, dropped = read_pairs(file, store)
        report_dropped(console, file, dropped)
        judge = _resolved(session, judge)
        config = _run_config(judge, max_model_len)
        judges.load_judge(session, judge, store, config)
        metrics = measure(session, judge, pairs)
    if as_json:
        print(json.dumps(metrics, indent=2))
    else:
        show(metrics)
    return 0


def measure(session: Session, judge: AnyJudge, pairs: Sequence[ReasonedPair]) -> dict[str, float]:
    """Accuracies of the loaded judge; of a critique model also without a critique, and on the
    file's reasons where both sides have one (the upper bound).
    """
    items = [known_item(p.sample, text) for p in pairs for text in (p.chosen, p.rejected)]
    judged = session.ask("judge", "judge", items, limit="judge")
    scores = [judgement.score for judgement in judged]
    metrics = reward_bench_metrics(pairs, both_sides(scores))
    if not isinstance(judge, CritiqueConfig):
        return metrics
    assert judge.model is not None
    request = str(load_reward_settings(judge.model)["request"])
    for name, given in (("no_critique", False), ("given_reasons", True)):
        chosen = [pair for pair in pairs if pair.has_reasons or not given]
        rows = [row for pair in chosen for row in pair_rows(pair, request, given=given)]
        values = session.ask("judge", "call", "score", rows, limit="judge") if rows else []
        found = reward_bench_metrics(chosen, both_sides(values))
        metrics |= {f"{key}_{name}": found[key] for key in ("acc", "acc_plus") if key in found}
    return metrics


def both_sides(scores: Sequence[float | None]) -> list[tuple[float, float] | None]:
    """Scores of chosen and rejected in turn, as pairs; None where the judge failed on a side."""
    return [
        None if chosen is None or rejected is None else (chosen, rejected)
        for chosen, rejected in zip(scores[0::2], scores[1::2], strict=True)
    ]


def show(metrics: dict[str, float]) -> None:
    """A line each."""
    for name, value in metrics.items():
        print(f"{name:28} {value:.4f}" if name.startswith("acc") else f"{name:28} {value:.0f}")


def report_dropped(console: Console, file: Path, dropped: Sequence[str]) -> None:
    """Say which rows are not used."""
    for line in dropped:
        console.warn(f"{file}: {line}")


def parse_judge(reference: str) -> AnyJudge:
    """The judge of `--judge`: a folder, `module:function`, or a mapping in YAML."""
    import yaml

    value = yaml.safe_load(reference) if reference.lstrip().startswith("{") else reference
    config = _run_config(value, 384)
    assert config.judge is not None
    judges.check_judge(config.judge)
    for part in judges.parts(config.judge):
        if isinstance(part, ClaimsConfig) and part.labeler == "policy":
            raise UserError("judge.labeler=policy: there is no policy here; give a model folder")
    return config.judge


def _run_config(judge: Any, max_model_len: int, bf16: bool = False) -> RunConfig:
    """Settings of a run that only judges."""
    from cluster.config_text import validate

    if not isinstance(judge, dict | str):
        judge = judge.model_dump()
    values = {
        "method": {"name": "sft"},
        "judge": judge,
        "rollout": {"max_model_len": max_model_len},
        "train": {"bf16": bf16},
    }
    return validate(RunConfig, values, "--judge")


def _resolved(session: Session, judge: AnyJudge) -> AnyJudge:
    built = None
    if judges.needs_builtin(judge):
        built = base_model.ensure(session, WorldRecipe())
    return judges.resolve(judge, built)


def _judge(
    session: Session,
    judge: AnyJudge,
    store: ImageStore,
    max_model_len: int,
    items: Sequence[JudgeItem],
) -> list[Judgement]:
    judge = _resolved(session, judge)
    judges.load_judge(session, judge, store, _run_config(judge, max_model_len))
    return list(session.ask("judge", "judge", items, limit="judge"))


@contextmanager
def _workplace(
    name: str, num_threads: int | None, *, quiet: bool = False
) -> Iterator[tuple[Console, Session, ImageStore]]:
    """A session, and a folder for images that is gone afterwards unless something failed."""
    folder = run_folder("runs", name)
    with Console(folder / "run.log", quiet=quiet) as console, reported(console, folder):
        store = ImageStore(folder / "images")
        with Session(num_threads=num_threads, console=console) as session:
            yield console, session, store
    shutil.rmtree(folder, ignore_errors=True)
