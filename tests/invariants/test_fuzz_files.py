"""Mutated settings, images and files of a run's folder: read, or refused in one line.

With tests/trainers/data/test_fuzz_readers.py (rows, data files, records) these are all readers.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.compare_resume import Kept
from cluster.config import CompareConfig, RunConfig
from cluster.config_text import apply_overrides, read_yaml, validate
from cluster.run_start import Start
from cluster.run_state import STATE, RunState, read_state
from rewards.rubric import FOLDER as RUBRICS
from rewards.rubric import load_rubric
from tests.damaged import damaged
from trainers import checkpoint
from trainers.comparison import Comparison, CurvePoint, Evaluated, MethodResult, load
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.preferences import read_pairs
from trainers.gallery import Gallery, gallery_item, load_gallery
from trainers.json_files import load_as
from trainers.ledger import LedgerRow, binding_phase, copies_at, phase_bytes, read_rows
from trainers.random_state import random_state, state_of

EXAMPLES = Path(__file__).parents[2] / "examples"
POOL: list[Any] = [
    None, True, False, 0, -1, 2**70, 0.5, 1e308, float("nan"), "", "x", "a\0b", "\ud800", "a\nb",
    "\u2028", "[" * 400, "y" * 5000, "../../etc/passwd", "!!python/object:os.system", [], {}, [[]],
    {"": 1}, {"a\nb": 1}, ["a", None], {"name": "ppo"}, {"name": ["ppo"]}, [{"round": "x"}],
]  # fmt: skip


def mutated(value: Any, chance: random.Random) -> Any:
    """One place replaced, removed or renamed."""
    value = copy.deepcopy(value)
    holder, key = value, None
    while holder:
        key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.3:
            break
        holder = inner
    if not holder:
        return chance.choice(POOL)
    action = chance.random()
    if action < 0.2:
        del holder[key]
    elif action < 0.4 and isinstance(holder, dict):
        holder[chance.choice(["", "nam", "0", "a.b", "\x00", "a\nb", "../x"])] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(chance.choice(POOL))
    return value


PARTS = [
    part * times
    for part in (b"\xff" * 4, b"\0" * 4, b"{[{[", b"&a *a", b"- ? ", b"\r\n", b"[")
    for times in (1, 1, 1, 3000)
]


def is_read(name: str, work: Callable[[], object]) -> bool:
    """True if it was read, False if refused in one line; anything else is the test's failure."""
    refusal = None
    try:
        work()
    except UserError as error:
        refusal = str(error)
    except Exception as error:
        raise AssertionError(f"{name}: {type(error).__name__} instead of a refusal") from error
    assert refusal is None or len(refusal.splitlines()) == 1, f"{name}: {refusal}"
    return refusal is None


def point() -> CurvePoint:
    return CurvePoint(round=0, score=1.5, extra={"beta": 0.1})


def comparison() -> Comparison:
    result = MethodResult(method="dpo", curve=[point()], metrics={"chair_i": 0.2})
    return Comparison(
        created="now", base=Evaluated(metrics={"chair_i": 0.3}), methods={"dpo": result}
    )


def run_state() -> RunState:
    return RunState(
        round=3,
        method="dpo",
        seed=1,
        trained=["policy"],
        ranks=1,
        rng=state_of(random.Random(0)),
        random=random_state(),
        method_state={"scale": {"mean": 0.1}},
        policy_version=4,
        best=None,
        result=MethodResult(method="dpo", curve=[point()]),
        spans=[("train", 0.0, 1.5)],
        files={"metrics.jsonl": 10},
        log=20,
        made_of={"the model": "01234567"},
    )


def ledger_rows() -> list[dict[str, Any]]:
    shared = {"round": 1, "process": "policy/0", "copy": "policy", "source": "storages"}
    return [
        asdict(LedgerRow(phase=phase, kind=kind, place="device", bytes=7, **shared))
        for phase, kind in (("train", "weights"), ("train", "optimizer"), ("sync", "weights"))
    ]


class Readers:
    """Everything that is read from outside but rows and records; each call is one mutation."""

    def __init__(self, folder: Path, chance: random.Random):
        self.folder, self.chance = folder, chance
        self.store = ImageStore(folder / "store", max_pixels=10_000)
        self.images = []
        for suffix in ("png", "jpg", "webp", "bmp", "gif", "tif", "ppm"):
            Image.new("RGB", (6, 6), (1, 2, 3)).save(folder / f"cat.{suffix}")
            self.images.append((folder / f"cat.{suffix}").read_bytes())
        names = ("ppo", "nsft", "compare")
        self.examples = {name: read_yaml(EXAMPLES / f"{name}.yaml") for name in names}
        self.texts = {name: (EXAMPLES / f"{name}.yaml").read_bytes() for name in names}
        self.comparison = json.loads(comparison().model_dump_json())
        item = gallery_item(self.images[0], {"objects": [["red", "cube", "left"]]}, {"base": "a"})
        self.gallery = json.loads(Gallery(items=[item]).model_dump_json())
        self.pair = {"id": 1, "prompt": "What?", "image": "cat.png", "chosen": "a", "rejected": "b"}
        self.state = json.loads(run_state().model_dump_json())
        self.start = {"base": {"chair_i": 0.3}, "judge": {}, "captions": {"base": ["a"]}}
        self.kept = {"start_point": point().model_dump(), "captions": {"base": ["a"]}}
        self.checkpoint = checkpoint.write(folder / "checkpoints", 3, self.fill)
        self.manifest = json.loads((self.checkpoint / checkpoint.MANIFEST).read_text())
        self.rubrics = [path.read_bytes() for path in sorted(RUBRICS.glob("*.md"))]

    def fill(self, folder: Path) -> None:
        (folder / "engine").mkdir()
        (folder / "engine" / "policy.json").write_text("{}")
        (folder / STATE).write_text(json.dumps(self.state))

    def written(self, data: bytes, name: str) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def json_file(self, value: Any, name: str) -> Path:
        """Mutated, and then every third time damaged as bytes."""
        data = json.dumps(mutated(value, self.chance)).encode()
        return self.written(
            damaged(data, self.chance, PARTS) if self.chance.random() < 0.3 else data, name
        )

    def settings(self) -> object:
        name = self.chance.choice(list(self.examples))
        model = CompareConfig if name == "compare" else RunConfig
        return validate(model, mutated(self.examples[name], self.chance), "x")

    def yaml(self) -> object:
        name = self.chance.choice(list(self.texts))
        model = CompareConfig if name == "compare" else RunConfig
        path = self.written(damaged(self.texts[name], self.chance, PARTS), "input.yaml")
        return validate(model, read_yaml(path), "input.yaml")

    def overrides(self) -> object:
        keys = ["rounds", "rollout", "method.kl_coef", "", "a.b", "judge.name", "method", "data"]
        words = [f"--{self.chance.choice(keys)}", str(self.chance.choice(POOL))]
        return validate(RunConfig, apply_overrides(dict(self.examples["ppo"]), words), "x")

    def image(self) -> object:
        return self.store.put_bytes(
            damaged(self.chance.choice(self.images), self.chance, PARTS), "a.png"
        )

    def pairs(self) -> object:
        rows = [mutated(self.pair, self.chance) for _ in range(2)]
        data = "\n".join(map(json.dumps, rows)).encode()
        data = damaged(data, self.chance, PARTS) if self.chance.random() < 0.5 else data
        return read_pairs(self.written(data, "pairs.jsonl"), self.store)

    def compare_json(self) -> object:
        return load(self.json_file(self.comparison, "compare.json"))

    def gallery_json(self) -> object:
        return load_gallery(self.json_file(self.gallery, "gallery.json"))

    def ledger(self) -> None:
        lines = [json.dumps(row) for row in ledger_rows()]
        place = self.chance.randrange(len(lines))
        lines[place] = json.dumps(mutated(json.loads(lines[place]), self.chance))
        data = "".join(f"{line}\n" for line in lines).encode()
        data = damaged(data, self.chance, PARTS) if self.chance.random() < 0.3 else data
        rows = read_rows(self.written(data, "ledger.jsonl"))
        binding_phase(rows)  # what was read can be counted
        for phase in phase_bytes(rows):
            copies_at(rows, phase)

    def manifest_json(self) -> None:
        target = self.checkpoint / checkpoint.MANIFEST
        target.write_bytes(self.json_file(self.manifest, "manifest.json").read_bytes())
        checkpoint.verify(self.checkpoint)

    def state_json(self) -> object:
        return read_state(self.json_file(self.state, STATE).parent)

    def start_json(self) -> object:
        return load_as(Start, self.json_file(self.start, "start.json"))

    def captions_json(self) -> object:
        return load_as(Kept, self.json_file(self.kept, "captions.json"))

    def rubric(self) -> object:
        data = damaged(self.chance.choice(self.rubrics), self.chance, PARTS)
        return load_rubric(str(self.written(data, "rubric.md")))


READERS = (
    Readers.settings,
    Readers.yaml,
    Readers.overrides,
    Readers.image,
    Readers.pairs,
    Readers.compare_json,
    Readers.gallery_json,
    Readers.ledger,
    Readers.manifest_json,
    Readers.state_json,
    Readers.start_json,
    Readers.captions_json,
    Readers.rubric,
)


def fuzz(folder: Path, seed: int, number: int) -> dict[str, int]:
    """`number` inputs, shared among the readers; how many of each were read."""
    chance = random.Random(seed)
    readers = Readers(folder, chance)
    read = {reader.__name__: 0 for reader in READERS}
    for i in range(number):
        reader = READERS[i % len(READERS)]
        read[reader.__name__] += is_read(f"{reader.__name__} {i}", partial(reader, readers))
    return read


def test_four_hundred_mutations(tmp_path: Path):
    read = fuzz(tmp_path, seed=0, number=400)
    # that some are read shows that the mutations are not all absurd
    assert read["image"] and read["ledger"] and read["rubric"], read


@pytest.mark.slow
def test_ten_thousand_mutations(tmp_path: Path):
    read = fuzz(tmp_path, seed=1, number=10_000)
    assert all(read.values()), read
    assert all(number < 10_000 // len(READERS) for number in read.values()), read
