"""AMBER: descriptions and yes/no questions with annotated truth (`junyangwang0410/AMBER`).

Files of the repository's `data` folder: `query/query_*.json` (`id`, `image`, `query`),
`annotations.json` (`id`, `type`, `truth`, `hallu`), `relation.json` (associates of each object),
`safe_words.txt`. Answers: `[{"id", "response"}]`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.benchmarks.amber_counts import (
    EPSILON,
    count_description,
    description_rates,
    question_rates,
    yes_no,
)
from trainers.benchmarks.files import fields, find_file, find_image, read_json
from trainers.benchmarks.questions import Answer, Options, Question, limited
from trainers.benchmarks.words import Nouns, choose, own_nouns, tagged_nouns
from trainers.data.errors import UserError
from trainers.evaluation import plain_words

QUERIES = {
    "generative": "query_generative.json",
    "discriminative": "query_discriminative.json",
    "existence": "query_discriminative-existence.json",
    "attribute": "query_discriminative-attribute.json",
    "relation": "query_discriminative-relation.json",
}
"""`--split` -> file; without a split `query_all.json`."""
MAX_TOKENS = {"generative": 1024, "discriminative": 16}
SOURCE = "github.com/junyangwang0410/AMBER, data"
IMAGES = "AMBER's image archive, linked from github.com/junyangwang0410/AMBER"
GENERATIVE = "generative"
EXISTENCE = "discriminative-hallucination"
ATTRIBUTES = {
    "state": "discriminative-attribute-state",
    "number": "discriminative-attribute-number",
    "action": "discriminative-attribute-action",
}
EXISTENCE_EPSILON = 0.001
"""The script's F1 of this one dimension adds ten times as much as the others."""


class Amber:
    """Generative and discriminative questions; all metrics in %, as the script prints them."""

    name = "amber"
    needs_judge = False

    def __init__(self, data: Path, options: Options):
        if options.prompt is not None:
            raise UserError("--prompt: AMBER's questions are in its files")
        if options.split is not None and options.split not in QUERIES:
            raise UserError(f"--split {options.split}: AMBER has {', '.join(QUERIES)}")
        query = "query_all.json" if options.split is None else QUERIES[options.split]
        self.questions = limited(_read(data, query, options.max_tokens), options.limit)
        self.notes: tuple[str, ...] = ("in %; the positive class of the yes/no questions is No",)
        if self._has_descriptions():
            self.associations: dict[str, list[str]] = read_json(_find(data, "relation.json"))
            safe = _find(data, "safe_words.txt").read_text(encoding="utf-8")
            self.safe = frozenset(safe.split("\n"))
            self._check_associations(data)
            self.nouns: Nouns = choose(
                options.words, {"original": tagged_nouns, "own": own_nouns}, "amber"
            )
            self.notes = (*self.notes, self.nouns.note)

    def _has_descriptions(self) -> bool:
        return any(question.part == GENERATIVE for question in self.questions)

    def _check_associations(self, data: Path) -> None:
        for question in self.questions:
            for word in (*question.truth.get("objects", ()), *question.truth.get("hallu", ())):
                if word not in self.associations:
                    raise UserError(
                        f"{data}: annotation {question.id} has {word!r}, which relation.json lacks"
                    )

    def metrics(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Of the parts that were asked, by AMBER's names; `amber_score` where both halves were.

        AMBER score = (100 - CHAIR + F1) / 2. `unclear` is the % of yes/no answers that hold neither
        word, which are counted as No.
        """
        pairs = list(zip(self.questions, answers, strict=True))
        result: dict[str, float] = {}
        if described := [(q, a.text) for q, a in pairs if q.part == GENERATIVE]:
            result |= description_rates(
                [
                    count_description(
                        self.nouns.lemmas(text),
                        question.truth["objects"],
                        question.truth["hallu"],
                        associations=self.associations,
                        safe=self.safe,
                        similar=self.nouns.similar,
                    )
                    for question, text in described
                ]
            )
        asked = [(q, a.text) for q, a in pairs if q.part != GENERATIVE]
        if not asked:
            return result
        result |= _question_metrics(
            [(q.truth["type"], str(q.label), yes_no(text)) for q, text in asked]
        )
        unclear = [not {"yes", "no"} & set(plain_words(text)) for _, text in asked]
        result["unclear"] = round(100 * sum(unclear) / len(asked), 1)
        if described:
            result["amber_score"] = (100 - result["chair"] + result["f1"]) / 2
        return result

    def answer_files(self, answers: Sequence[Answer]) -> dict[str, str]:
        """`--inference_data` of the script: yes/no answers reduced to `Yes` or `No`."""
        rows = [
            {
                "id": q.truth["id"],
                "response": answer.text if q.part == GENERATIVE else yes_no(answer.text),
            }
            for q, answer in zip(self.questions, answers, strict=True)
        ]
        return {"amber_answers.json": json.dumps(rows, indent=1) + "\n"}


def _question_metrics(items: Sequence[tuple[str, str, str]]) -> dict[str, float]:
    """All yes/no questions together, then by dimension where there are any."""
    result = question_rates([(truth, said) for _, truth, said in items])
    groups = {"existence": [EXISTENCE], "attribute": [*ATTRIBUTES.values()]}
    groups |= {name: [kind] for name, kind in ATTRIBUTES.items()}
    known = {EXISTENCE, *ATTRIBUTES.values()}
    parts = {name: [item for item in items if item[0] in kinds] for name, kinds in groups.items()}
    # `relation` and `discriminative-relation` are one dimension in the script.
    parts["relation"] = [item for item in items if item[0] not in known]
    for name, part in parts.items():
        if part:
            rates = question_rates(
                [(truth, said) for _, truth, said in part],
                epsilon=EXISTENCE_EPSILON if name == "existence" else EPSILON,
                counters=len(groups.get(name, [""])),
            )
            result |= {f"{name}_{metric}": value for metric, value in rates.items()}
    return result


def _read(data: Path, query: str, max_tokens: int | None) -> list[Question]:
    path = _find(data, query, f"query/{query}")
    annotations = {row["id"]: row for row in read_json(_find(data, "annotations.json"))}
    questions = []
    for number, row in enumerate(read_json(path), 1):
        id_, image, text = fields(row, ("id", "image", "query"), f"{path}: entry {number}")
        if id_ not in annotations:
            raise UserError(f"{path}: entry {number}: id {id_} is not in annotations.json")
        questions.append(
            _question(annotations[id_], find_image(data, image, IMAGES), text, max_tokens)
        )
    return questions


def _question(row: dict[str, Any], image: Path, text: str, max_tokens: int | None) -> Question:
    (kind, truth) = fields(row, ("type", "truth"), f"annotations.json: id {row['id']}")
    if kind == GENERATIVE:
        return Question(
            id=str(row["id"]),
            part=GENERATIVE,
            image=image,
            text=text,
            max_tokens=max_tokens or MAX_TOKENS[GENERATIVE],
            truth={"id": row["id"], "type": kind, "objects": truth, "hallu": row["hallu"]},
        )
    if truth not in ("yes", "no"):
        raise UserError(f"annotations.json: id {row['id']}: truth {truth!r} is neither yes nor no")
    dimension = "attribute" if kind in ATTRIBUTES.values() else "relation"
    return Question(
        id=str(row["id"]),
        part="existence" if kind == EXISTENCE else dimension,
        image=image,
        text=text,
        max_tokens=max_tokens or MAX_TOKENS["discriminative"],
        label=truth,
        truth={"id": row["id"], "type": kind},
    )


def _find(data: Path, *names: str) -> Path:
    places = [f"{folder}{name}" for folder in ("", "data/") for name in names]
    return find_file(data, places, SOURCE)
