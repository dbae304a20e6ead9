"""CHAIR on COCO captions (arXiv 1809.02156, `LisaAnne/Hallucination`, `utils/chair.py`)."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.benchmarks.coco import (
    Annotations,
    Vocabulary,
    read_annotations,
    read_synonyms,
    special_pairs,
)
from trainers.benchmarks.files import find_file, find_image
from trainers.benchmarks.mentions import count, rates
from trainers.benchmarks.questions import Answer, Options, Question, limited
from trainers.benchmarks.words import choose, own_words, pattern_words, wordnet_words
from trainers.data.errors import UserError

PROMPT = "Please describe this image in detail."
MAX_TOKENS = 512
NUM_IMAGES = 500
"""Drawn from the annotated images where the data folder names none: the usual number."""
SOURCE = "github.com/LisaAnne/Hallucination, data/synonyms.txt"
IMAGES = "COCO 2014 (cocodataset.org: val2014.zip, train2014.zip)"
PAIRS = (
    "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal",
    "stop light", "fire hydrant", "stop sign", "parking meter", "suit case", "sports ball",
    "baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog", "cell phone",
    "mobile phone", "teddy bear", "hair drier", "potted plant", "laptop computer",
    "stove top oven", "home plate", "train track",
)  # fmt: skip
"""Names of two words that the script merges; others in the synonyms file never match."""
LANGUAGE_METRICS = (
    "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "CIDEr", "SPICE", "ROUGE_L",
)  # fmt: skip


class Chair:
    """Captions of COCO images; objects named but neither annotated nor in a reference caption."""

    name = "chair"
    needs_judge = False

    def __init__(self, data: Path, options: Options):
        if options.split is not None:
            raise UserError("--split: CHAIR has none; image_ids.txt chooses the images")
        words = choose(
            options.words,
            {"original": pattern_words, "wordnet": wordnet_words, "own": own_words},
            "chair",
        )
        synonyms = find_file(data, ("synonyms.txt", "data/synonyms.txt"), SOURCE)
        self.vocabulary = Vocabulary(
            class_of=read_synonyms(synonyms, strip=False),
            pairs={pair: pair for pair in PAIRS} | special_pairs(),
            words=words,
        )
        coco = read_annotations(data, self.vocabulary.class_of)
        ids, how = _image_ids(data, coco)
        self.questions = limited(
            [
                Question(
                    id=str(image_id),
                    part="captions",
                    image=find_image(data, coco.files[image_id], IMAGES),
                    text=options.prompt or PROMPT,
                    max_tokens=options.max_tokens or MAX_TOKENS,
                    truth={
                        "image_id": image_id,
                        "classes": sorted(coco.classes(image_id, self.vocabulary)),
                    },
                )
                for image_id in ids
            ],
            options.limit,
        )
        self.notes = (words.note, how, "CHAIR falls when captions get shorter: see recall")

    def metrics(self, answers: Sequence[Answer]) -> dict[str, float]:
        """`chair_i`, `chair_s`, and what puts them in perspective; see `mentions.rates`."""
        counts = [
            count(
                [name for _, name in self.vocabulary.mentions(answer.text)],
                set(question.truth["classes"]),
            )
            for question, answer in zip(self.questions, answers, strict=True)
        ]
        values = rates(counts)
        return {name: value for name, value in values.items() if "refine" not in name}

    def answer_files(self, answers: Sequence[Answer]) -> dict[str, str]:
        """`{"overall", "imgToEval"}` as the script wants it. The caption metrics that it copies
        through (BLEU and so on) are not computed here and stand as NaN.
        """
        blank = dict.fromkeys(LANGUAGE_METRICS, math.nan)
        captions: dict[str, dict[str, Any]] = {}
        for question, answer in zip(self.questions, answers, strict=True):
            image_id = question.truth["image_id"]
            captions[str(image_id)] = {"image_id": image_id, "caption": answer.text, **blank}
        content = json.dumps({"overall": blank, "imgToEval": captions})
        ids = "".join(f"{question.id}\n" for question in self.questions)
        return {"chair_captions.json": content + "\n", "image_ids.txt": ids}


def _image_ids(data: Path, coco: Annotations) -> tuple[list[int], str]:
    """The images to caption, and one line that says which."""
    path = data / "image_ids.txt"
    if not path.is_file():
        annotated = sorted(coco.instances)
        chosen = random.Random(0).sample(annotated, min(NUM_IMAGES, len(annotated)))
        return chosen, (
            f"images: {len(chosen)} drawn from {len(annotated)} annotated ones (seed 0); "
            "image_ids.txt in the data folder chooses others"
        )
    ids = []
    for number, line in enumerate(path.read_text().split(), 1):
        digits = Path(line).stem.rpartition("_")[2]
        if not digits.isdigit() or int(digits) not in coco.files:
            raise UserError(f"{path}: entry {number}: {line!r} is no image of COCO 2014")
        ids.append(int(digits))
    return ids, f"images: {len(ids)} from {path.name}"
