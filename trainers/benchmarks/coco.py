"""Objects of COCO: which of the 80 classes a text names, and which an image has.

The vocabulary is a synonyms file, one class a line, its name first. Sources: `utils/chair.py` of
`LisaAnne/Hallucination`, `eval/eval_gpt_obj_halbench.py` of `RLHF-V/RLAIF-V`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.benchmarks.files import find_file, read_json
from trainers.benchmarks.words import Words
from trainers.data.errors import UserError

ANIMALS = (
    "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
    "animal", "cub",
)  # fmt: skip
VEHICLES = ("jet", "train")
COCO_SOURCE = "cocodataset.org, annotations_trainval2014.zip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """From words to classes."""

    class_of: Mapping[str, str]
    """Name or synonym -> class."""
    pairs: Mapping[str, str]
    """Two words that are one name -> that name (`bow tie` -> `tie`)."""
    words: Words

    def mentions(self, text: str) -> list[tuple[str, str]]:
        """(word, class) of every object named in `text`, in reading order, repeats included.

        Lower case, tokens, singulars; listed pairs become one word, from left to right; `seat`
        does not count beside `toilet`. No text names nothing.
        """
        singular = [self.words.singular(word) for word in self.words.tokens(text.lower())]
        merged: list[str] = []
        index = 0
        while index < len(singular):
            pair = self.pairs.get(" ".join(singular[index : index + 2]))
            merged.append(singular[index] if pair is None else pair)
            index += 1 if pair is None else 2
        if "toilet" in merged:
            merged = [word for word in merged if word != "seat"]
        return [(word, self.class_of[word]) for word in merged if word in self.class_of]


def read_synonyms(path: Path, *, strip: bool) -> dict[str, str]:
    """Name or synonym -> class, from lines of names with a comma and a space between them.

    `strip` removes further spaces around a name. CHAIR's script does not, and its file has a few:
    ` motor bike` then never matches, and those mentions are not counted.
    """
    class_of: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        names = line.strip().split(", ")
        names = [name.strip() for name in names] if strip else names
        if names[0]:
            class_of |= dict.fromkeys(names, names[0])
    if not class_of:
        raise UserError(f"{path}: no names; it should hold one class a line, `dog, puppy, beagle`")
    return class_of


def special_pairs() -> dict[str, str]:
    """Pairs that mean one of their words, or another: the same in both scripts."""
    young = {f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS}
    vehicles = {f"passenger {vehicle}": vehicle for vehicle in VEHICLES}
    fixed = {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}
    return {**young, **vehicles, **fixed}


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotations:
    """What COCO knows of its images, by image id."""

    files: Mapping[int, str]
    instances: Mapping[int, set[str]]
    """Classes of the annotated objects; images without any are not here."""
    captions: Mapping[int, list[str]]

    def classes(self, image_id: int, vocabulary: Vocabulary) -> set[str]:
        """Classes that are in the image: annotated, or named in a reference caption, which is read
        by the same parser as answers.
        """
        named = {
            name
            for caption in self.captions.get(image_id, ())
            for _, name in vocabulary.mentions(caption)
        }
        return self.instances.get(image_id, set()) | named


def read_annotations(data: Path, class_of: Mapping[str, str]) -> Annotations:
    """`{instances,captions}_all2014.json`, or `_val2014` and `_train2014` of each."""
    files: dict[int, str] = {}
    instances: dict[int, set[str]] = {}
    captions: dict[int, list[str]] = {}
    for content in _contents(data, "instances"):
        files |= {row["id"]: row["file_name"] for row in content["images"]}
        names = {category["id"]: category["name"] for category in content["categories"]}
        for row in content["annotations"]:
            name = names[row["category_id"]]
            if name not in class_of:
                raise UserError(f"{data}: COCO class {name!r} is not in the synonyms file")
            instances.setdefault(row["image_id"], set()).add(class_of[name])
    for content in _contents(data, "captions"):
        for row in content["annotations"]:
            captions.setdefault(row["image_id"], []).append(row["caption"])
    return Annotations(files=files, instances=instances, captions=captions)


def _contents(data: Path, kind: str) -> Iterator[dict[str, list[dict[str, Any]]]]:
    every = _places(f"{kind}_all2014.json")
    if any((data / name).is_file() for name in every):
        yield read_json(find_file(data, every, COCO_SOURCE))
        return
    for part in ("val", "train"):
        yield read_json(find_file(data, _places(f"{kind}_{part}2014.json"), COCO_SOURCE))


def _places(name: str) -> tuple[str, str]:
    return (name, f"annotations/{name}")
