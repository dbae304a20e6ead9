"""The calibration diagnostic: p(yes) and p(no) of each question, with its image and without."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from PIL import Image

from actors.train_spec import TrainSpec
from cluster.answering import score_rows, scoring_spec
from cluster.evaluation import Evaluation
from cluster.session import Session
from trainers.batch import Row
from trainers.benchmarks.calibration import YesNo, calibration_metrics, verdict
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.data.records import Sample, Turn

WORDS = {"yes": ("Yes", "yes"), "no": ("No", "no")}
GREY = (127, 127, 127)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A yes/no question with its right answer."""

    sample: Sample
    label: Literal["yes", "no"]


def first_tokens(processing: Processing, sample: Sample) -> dict[str, tuple[int, ...]]:
    """The tokens that an answer Yes, yes, No or no begins with in this model's chat format.

    A word that the vocabulary lacks is left out.

    Raises:
        UserError: no word of one kind is left, or yes and no begin with the same token.
    """
    found: dict[str, tuple[int, ...]] = {}
    for kind, words in WORDS.items():
        tokens = []
        for word in words:
            turn = Turn(role="assistant", text=word)
            try:
                encoded = processing.encode(sample.id, sample.prompt, sample.images, turns=(turn,))
            except ValueError:  # the word is an unknown token, which no answer can hold
                continue
            tokens.append(int(encoded.input_ids[encoded.target_mask][0]))
        found[kind] = tuple(dict.fromkeys(tokens))
    if not all(found.values()) or set(found["yes"]) & set(found["no"]):
        raise UserError(
            f"{processing.tokenizer.name_or_path}: yes and no do not begin with tokens of their "
            "own in this model's chat format, so --calibrate cannot tell them apart"
        )
    return found


def measure(
    session: Session,
    questions: Sequence[Labelled],
    processing: Processing,
    spec: TrainSpec,
    *,
    without: Literal["none", "blank"],
) -> list[YesNo]:
    """One forward for each question, image (its own or none) and first token.

    `without` says what stands for no image: no image at all in the prompt (the paper's `none`), or
    a grey one of the same size.
    """
    tokens = first_tokens(processing, questions[0].sample)
    kinds = [(kind, token) for kind, ids in tokens.items() for token in ids]
    rows = []
    for item in questions:
        other = _without(item.sample, processing.store, without)
        for sample in (item.sample, other):
            rows += [
                Row.of_response(sample, (token,), f"{item.sample.id}/{token}") for _, token in kinds
            ]
    logprobs = iter(score_rows(session, spec, rows, "yes or no, with and without image"))
    results = []
    for item in questions:
        masses = []
        for _ in range(2):
            mass = dict.fromkeys(tokens, 0.0)
            for kind, _ in kinds:
                mass[kind] += math.exp(next(logprobs)[0])
            masses.append((mass["yes"], mass["no"]))
        results.append(YesNo(label=item.label, with_image=masses[0], without_image=masses[1]))
    return results


def _without(sample: Sample, store: ImageStore, how: Literal["none", "blank"]) -> Sample:
    if how == "none":
        prompt = tuple(replace(turn, num_images=0) for turn in sample.prompt)
        return replace(sample, prompt=prompt, images=())
    sizes = [store.get(image).size for image in sample.images]
    blank = tuple(store.put_image(Image.new("RGB", size, GREY)) for size in sizes)
    return replace(sample, images=blank)


def calibrate(run: Evaluation) -> dict[str, Any]:
    """Yes-bias or perception: the diagnostic's numbers, over all and by part."""
    pairs = zip(run.benchmark.questions, run.samples, strict=True)
    labelled = [
        (question.part, Labelled(sample=sample, label=question.label))
        for question, sample in pairs
        if question.label is not None
    ]
    items = measure(
        run.session,
        [item for _, item in labelled],
        Processing(run.model_dir, run.store),
        scoring_spec(run.model_dir, run.store, run.config),
        without=cast(Any, run.request.calibrate),
    )
    rows = [
        {
            "id": item.sample.id,
            "label": item.label,
            "p": yes_no.with_image,
            "p_cf": yes_no.without_image,
        }
        for (_, item), yes_no in zip(labelled, items, strict=True)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.folder / "calibration.jsonl").write_text(text)
    metrics = {"all": calibration_metrics(items)}
    parts = dict.fromkeys(part for part, _ in labelled)
    for name in parts if len(parts) > 1 else ():
        own = [item for (part, _), item in zip(labelled, items, strict=True) if part == name]
        metrics[name] = calibration_metrics(own)
    found = {name: verdict(values) for name, values in metrics.items()}
    run.notes += [f"calibration ({name}): {text}" for name, text in found.items()]
    return {"calibration": metrics, "calibration_verdict": found}
