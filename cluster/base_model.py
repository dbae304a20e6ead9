"""The built-in models, made here and cached by content: honest, base (biased) and judge.

    random weights --vision--> initial --SFT, true data--> honest --SFT, planted faults--> base
                                                           honest --preference pairs-----> judge

The judge starts from the honest model, as real reward models start from a better model than the one
they judge; half of the responses that it learns from are the base model's own.

Everything that decides them (recipe, the world's source, library versions) is hashed into the
cache's folder name, so a change of any of it builds anew; `--rebuild-base` builds in any case.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rewards.critique
import rewards.drawn_pairs
import trainers.data.drawn_model
import trainers.data.drawn_sft
import trainers.data.scenes
import trainers.drawn_vision
from actors.engine import EngineSpec
from actors.reward import CritiqueJudge, evaluator_turns
from actors.streams import CritiquePairs, CritiqueRewardObjective, DrawnConversations
from actors.train_spec import TrainSpec
from cluster.group import TrainGroup
from cluster.home import home
from cluster.session import Session
from rewards.base import known_item
from rewards.critique import CRITIQUE_REQUEST
from rewards.drawn_pairs import CRITIQUE_MIXTURE, PreferenceExample, preference_examples
from trainers.batch import Row
from trainers.config import SFTConfig
from trainers.data.drawn_sft import BaseRecipe, Phase
from trainers.data.images import ImageStore
from trainers.data.records import Turn
from trainers.data.scenes import scene_samples
from trainers.drawn_vision import VisionPhase, pretrain_tower
from trainers.method import Optimisation
from trainers.sft import SFT

SOURCES = (
    trainers.data.scenes,
    trainers.data.drawn_model,
    trainers.data.drawn_sft,
    rewards.critique,
    rewards.drawn_pairs,
    trainers.drawn_vision,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRecipe:
    """How the built-in critique model is trained."""

    request: str = CRITIQUE_REQUEST
    max_critique_tokens: int = 80
    num_samples: int = 2800
    """Prompts; each gives one training pair unless its two sides tie."""
    num_held_out: int = 800
    steps: int = 340
    batch_size: int = 24
    max_lr: float = 2e-3
    warmup_share: float = 0.1
    critique_dropout: float = 0.3
    """Share of pairs without critiques: PPO's critic starts from this model, and has none."""
    few_colors: float = 0.2
    """Of the training scenes; the held-out ones are drawn as the methods' prompts are."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldRecipe:
    """The built-in models' whole recipe; its hash names the cache folder."""

    vision: VisionPhase = field(default_factory=VisionPhase)
    base: BaseRecipe = field(default_factory=BaseRecipe)
    judge: JudgeRecipe = field(default_factory=JudgeRecipe)

    @classmethod
    def quick(cls) -> WorldRecipe:
        """Fewer steps: a weaker base and judge, for a look at the whole thing."""
        base, judge = BaseRecipe(), JudgeRecipe()
        return cls(
            vision=VisionPhase(steps=100),
            base=replace(
                base,
                honest=replace(base.honest, steps=120),
                biased=replace(base.biased, steps=60),
            ),
            judge=replace(judge, steps=80, num_samples=800, num_held_out=150),
        )

    def key(self) -> str:
        """Hash of the recipe, the world's source and the libraries: the cache folder's name."""
        parts: list[Any] = [asdict(self), version("torch"), version("transformers")]
        parts += [Path(str(module.__file__)).read_text() for module in SOURCES]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class BuiltinModels:
    """Folders of the cached models and the judge's accuracy on held-out pairs."""

    honest: Path
    base: Path
    judge: Path
    judge_metrics: dict[str, float]


def cache_root() -> Path:
    """`QUARTET_CACHE`, or `.cache/quartet` in the working directory (`cluster.home`)."""
    return Path(os.environ.get("QUARTET_CACHE") or home() / ".cache/quartet").resolve()


def is_cached(recipe: WorldRecipe) -> bool:
    """Whether the built-in models of this recipe are there already."""
    return (cache_root() / recipe.key() / "judge.json").is_file()


def ensure(session: Session, recipe: WorldRecipe, *, rebuild: bool = False) -> BuiltinModels:
    """The built-in models, from the cache or built now (atomically: all of them or none)."""
    final = cache_root() / recipe.key()
    if rebuild or not is_cached(recipe):
        partial = final.with_name(f".{final.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _build(session, recipe, partial)
            shutil.rmtree(partial / "images")
            shutil.rmtree(final, ignore_errors=True)
            partial.replace(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    else:
        session.console.line(f"built-in models: cached in {final.name}")
    return BuiltinModels(
        final / "honest",
        final / "base",
        final / "judge",
        json.loads((final / "judge.json").read_text()),
    )


def _build(session: Session, recipe: WorldRecipe, folder: Path) -> None:
    from trainers.data.drawn_model import build_model, build_processor, save_pretrained_folder

    base = recipe.base
    folder.mkdir(parents=True)
    store = ImageStore(folder / "images")
    model = build_model(base.seed)
    steps = recipe.vision.steps
    with session.console.stage("pretrain vision tower", total=steps) as bar:

        def progress(accuracy: float) -> None:
            bar.advance(1, note=f"patches right {accuracy:.2f}")

        pretrain_tower(model, recipe.vision, base.seed, progress)
    save_pretrained_folder(model, build_processor(), folder / "initial")
    with session.builder() as ranks:
        for name, parent, phase in (
            ("honest", "initial", base.honest),
            ("base", "honest", base.biased),
        ):
            spec = TrainSpec(
                role="policy",
                model_dir=str(folder / parent),
                image_root=str(store.root),
                betas=base.betas,
                weight_decay=base.weight_decay,
                gradient_clip=base.max_grad_norm,
                # As in LLaVA-1.5's training: the tower is trained already.
                frozen=("vision",) if name == "honest" else (),
                muon_ratio=base.muon_scale if name == "honest" else None,
            )
            ranks.ask("load", spec, limit="load")
            stream = DrawnConversations(phase, base.seed, biased=name == "base")
            objective = SFT(SFTConfig())
            run_stream(session, f"train {name} model", ranks, stream, objective, _one_phase(phase))
            ranks.ask("save", str(folder / name), limit="save")
        examples = _judge_examples(session, recipe.judge, folder, store)
        _train_judge(session, recipe.judge, ranks, folder, store, examples[0], base.betas)
    shutil.rmtree(folder / "initial")
    engine = EngineSpec(model_dir=str(folder / "judge"), image_root=str(store.root))
    session.load_judge(lambda: CritiqueJudge(engine))
    with session.console.stage("judge's accuracy on held-out pairs"):
        metrics = pair_accuracy(session, recipe.judge.request, examples[1])
    metrics["training_pairs"] = float(len(examples[0]))
    (folder / "judge.json").write_text(json.dumps(metrics, indent=2) + "\n")


def _one_phase(phase: Phase) -> Optimisation:
    return Optimisation(
        learning_rate=phase.max_lr,
        epochs=1,
        minibatch_size=phase.batch_size,
        warmup_steps=int(phase.warmup_share * phase.steps),
        total_steps=phase.steps,
    )


def run_stream(
    session: Session,
    title: str,
    ranks: TrainGroup,
    stream: Any,
    objective: Any,
    optimisation: Optimisation,
) -> None:
    """Take all of a schedule's steps on the stream's minibatches, with progress."""
    ranks.ask("open_stream", stream, limit="load")
    steps = optimisation.total_steps or 0
    with session.console.stage(title, total=steps) as bar:
        done = 0
        while done < steps:
            number = min(20, steps - done)
            metrics = ranks.ask("train_stream", number, objective, optimisation, limit="train")[0]
            done += number
            bar.advance(number, note=f"loss {metrics['loss']:.3f}")


def _judge_examples(
    session: Session, recipe: JudgeRecipe, folder: Path, store: ImageStore
) -> tuple[list[PreferenceExample], list[PreferenceExample]]:
    """Pairs to train the judge on and pairs held out, half of them the base model's own samples."""
    session.load_rollout(EngineSpec(model_dir=str(folder / "base"), image_root=str(store.root)))
    with session.console.stage("draw the judge's training pairs"):
        seed, put = 10_000 + recipe.seed, store.put_image
        samples = list(
            scene_samples(
                seed,
                recipe.num_samples,
                put,
                mixture=CRITIQUE_MIXTURE,
                few_colors=recipe.few_colors,
            )
        )
        samples += scene_samples(20_000 + recipe.seed, recipe.num_held_out, put)
        rollouts, _ = session.ask(
            "rollout",
            "generate",
            samples,
            limit="generate",
            num_rollouts_per_prompt=1,
            temperature=1.0,
            max_tokens=64,
            seed=recipe.seed,
        )
        texts: dict[str, list[str]] = {sample.id: [] for sample in samples}
        for rollout in rollouts:
            texts[rollout.sample_id].append(rollout.text)
        training, held_out = (
            list(preference_examples([(s, texts[s.id]) for s in part], recipe.seed))
            for part in (samples[: recipe.num_samples], samples[recipe.num_samples :])
        )
    return training, held_out


def _train_judge(
    session: Session,
    recipe: JudgeRecipe,
    ranks: TrainGroup,
    folder: Path,
    store: ImageStore,
    examples: Sequence[PreferenceExample],
    betas: tuple[float, float],
) -> None:
    spec = TrainSpec(
        role="reward",
        model_dir=str(folder / "honest"),
        image_root=str(store.root),
        betas=betas,
        frozen=("vision",),
    )
    ranks.ask("load", spec, limit="load")
    stream = CritiquePairs(
        examples, recipe.request, recipe.batch_size, recipe.seed, recipe.critique_dropout
    )
    optimisation = Optimisation(
        learning_rate=recipe.max_lr,
        epochs=1,
        minibatch_size=recipe.batch_size,
        warmup_steps=int(recipe.warmup_share * recipe.steps),
        total_steps=recipe.steps,
    )
    objective = CritiqueRewardObjective()
    run_stream(session, "train judge", ranks, stream, objective, optimisation)
    settings = {
        "request": recipe.request,
        "max_critique_tokens": recipe.max_critique_tokens,
    }
    ranks.ask("save", str(folder / "judge"), settings, limit="save")


def pair_accuracy(
    session: Session, request: str, examples: Sequence[PreferenceExample]
) -> dict[str, float]:
    """Share of held-out pairs ordered rightly, by where the critique comes from."""
    sides = [(e.chosen, e.chosen_critique) for e in examples]
    sides += [(e.rejected, e.rejected_critique) for e in examples]
    samples = [e.sample for e in examples] * 2
    items = [known_item(sample, text) for sample, (text, _) in zip(samples, sides, strict=True)]
    judged = session.ask("judge", "judge", items, limit="judge")

    def rows(given: bool) -> list[Row]:
        return [
            Row(
                id=sample.id,
                prompt=evaluator_turns(request, sample, text),
                images=sample.images,
                turns=(Turn(role="assistant", text=critique.text),) if given else (),
                response_ids=None if given else (),
            )
            for sample, (text, critique) in zip(samples, sides, strict=True)
        ]

    scores = {
        "generated": [j.score if j.score is not None else float("nan") for j in judged],
        "no_critique": session.ask("judge", "call", "score", rows(False), limit="judge"),
        "ground_truth_critique": session.ask("judge", "call", "score", rows(True), limit="judge"),
    }
    number = len(examples)
    kinds = sorted({e.sample.kind for e in examples})
    metrics: dict[str, float] = {"held_out_pairs": float(number)}
    for name, values in scores.items():
        right = [values[i] > values[i + number] for i in range(number)]
        metrics[f"pair_accuracy_{name}"] = sum(right) / number
        for kind in kinds:
            own = [r for r, e in zip(right, examples, strict=True) if e.sample.kind == kind]
            metrics[f"pair_accuracy_{name}/{kind}"] = sum(own) / len(own)
    exact = [
        j.critique is not None and j.critique.text == critique.text
        for j, (_, critique) in zip(judged, sides, strict=True)
    ]
    metrics["critique_exact_match"] = sum(exact) / len(exact)
    return metrics
