"""Object HalBench without extraction by a language model: every object word counts.

The published numbers let GPT-3.5 list what an answer claims to see, and are another metric. This
is the variant of `yfzhang114/mmrlhf-eval` (`tasks/objecthallusion`), which reads the answer itself.
It reads that task's data (`image`, `question`, `objects`) or RLAIF-V's file
`obj_halbench_300_with_image.jsonl` (`image` in base64, `question`, `image_id`), whose objects come
from COCO's annotations.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainers.benchmarks.coco import Vocabulary, read_annotations, read_synonyms, special_pairs
from trainers.benchmarks.files import fields, find_file, find_image, json_lines, read_json_lines
from trainers.benchmarks.mentions import count, rates
from trainers.benchmarks.questions import Answer, Options, Question, limited
from trainers.benchmarks.words import choose, own_words, wordnet_words
from trainers.data.errors import UserError
from trainers.evaluation import ratio

MAX_TOKENS = 1024
RLAIF_V = "obj_halbench_300_with_image.jsonl"
SYNONYMS_SOURCE = "github.com/RLHF-V/RLAIF-V, eval/data/synonyms_refine.txt"
SOURCE = f"huggingface.co/datasets/DogNeverSleep/Hallucination_COCO (or RLAIF-V's {RLAIF_V})"


class ObjectHalBench:
    """Detailed descriptions; objects named but not in the image."""

    name = "object-halbench"
    needs_judge = False

    def __init__(self, data: Path, options: Options):
        if options.split is not None:
            raise UserError("--split: Object HalBench has none")
        if options.prompt is not None:
            raise UserError("--prompt: Object HalBench's questions are in its file")
        words = choose(
            options.words,
            {"original": wordnet_words, "wordnet": wordnet_words, "own": own_words},
            "object-halbench",
        )
        synonyms = find_file(data, ("synonyms_refine.txt",), SYNONYMS_SOURCE)
        class_of = read_synonyms(synonyms, strip=True)
        pairs = {name: name for name in class_of if " " in name}
        pairs |= {"home plate": "home plate", "train track": "train track"}
        self.vocabulary = Vocabulary(class_of=class_of, pairs=pairs | special_pairs(), words=words)
        questions = list(_read(data, self.vocabulary, options.max_tokens or MAX_TOKENS))
        self.questions = limited(questions, options.limit)
        self.notes = (
            words.note,
            "without GPT's extraction: not comparable with Object HalBench numbers that use it",
        )

    def metrics(self, answers: Sequence[Answer]) -> dict[str, float]:
        """`mentions.rates`: `chair_s` is over all answers, `chair_s_refine` over those that name an
        object, as RLAIF-V's script; and the mean words of an answer.
        """
        counts = [
            count(
                [name for _, name in self.vocabulary.mentions(answer.text)],
                set(question.truth["classes"]),
            )
            for question, answer in zip(self.questions, answers, strict=True)
        ]
        lengths = [float(len(answer.text.strip().split(" "))) for answer in answers]
        return rates(counts) | {"words": ratio(lengths, [1.0] * len(lengths))[0]}

    def answer_files(self, answers: Sequence[Answer]) -> dict[str, str]:
        """JSON lines as RLAIF-V's script reads them."""
        rows = [
            {"image_id": q.truth["image_id"], "question": q.text, "answer": answer.text}
            for q, answer in zip(self.questions, answers, strict=True)
        ]
        return {"obj_halbench_answer.jsonl": json_lines(rows)}


def _read(data: Path, vocabulary: Vocabulary, max_tokens: int) -> Iterator[Question]:
    rlaif_v = data / RLAIF_V
    path = rlaif_v if rlaif_v.is_file() else _table(data)
    coco = read_annotations(data, vocabulary.class_of) if path == rlaif_v else None
    rows = _parquet(path) if path.suffix == ".parquet" else read_json_lines(path)
    for number, row in enumerate(rows, 1):
        where = f"{path}: row {number}"
        image, question = fields(row, ("image", "question"), where)
        image_id = row.get("image_id", number)
        if coco is not None:
            if int(image_id) not in coco.files:
                raise UserError(f"{where}: image {image_id} is not in COCO's annotations")
            truth = sorted(coco.classes(int(image_id), vocabulary))
        else:
            (truth,) = fields(row, ("objects",), where)
        yield Question(
            id=str(number),
            part="captions",
            image=_image(image, data, where),
            text=question,
            max_tokens=max_tokens,
            truth={"image_id": image_id, "classes": list(truth)},
        )


def _table(data: Path) -> Path:
    found = sorted(data.glob("*.parquet")) if data.is_dir() else []
    if len(found) > 1:
        raise UserError(f"{data}: {len(found)} parquet files; keep the one of Object HalBench")
    return found[0] if found else find_file(data, ("hallucination_coco.jsonl",), SOURCE)


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged parquet ({reason}); download it again") from None
    return rows


def _image(image: Any, data: Path, where: str) -> Path | bytes:
    """Bytes as Hugging Face's datasets hold them, base64 text, or a file's name."""
    if isinstance(image, dict):
        if not isinstance(image.get("bytes"), bytes):
            raise UserError(f"{where}: the image has no bytes")
        content: bytes = image["bytes"]
        return content
    if len(image) < 200:  # no image is so small, and no file name so long
        return find_image(data, image, SOURCE)
    try:
        return base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{where}: the image is not base64 ({error})") from None
