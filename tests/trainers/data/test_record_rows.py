"""Record files as data: what was converted, what a run judged, and pairs, with their images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from trainers.data.convert import write_records
from trainers.data.datasets import load_samples
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.record_file import RecordWriter
from trainers.data.records import Candidate, Correction, PreferencePair, Sample, Turn


def sample(store: ImageStore, **parts) -> Sample:
    image = store.put_image(Image.new("RGB", (3, 3), (1, 2, 3)))
    prompt = (Turn(role="user", text="What is it?", num_images=1),)
    return Sample(id="s", prompt=prompt, images=(image,), kind="describe", **parts)


def write(path: Path, *records) -> Path:
    with RecordWriter(path) as file:
        for record in records:
            file.append(record)
    return path


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "run" / "images")


@pytest.fixture
def other(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "other")


def test_what_was_converted_reads_back(store, other, tmp_path):
    candidates = (Candidate(text="A cat.", label="gt", score=1.0, aspects={"b": 2.0}),)
    known = sample(
        store,
        truth={"answer": "no", "n": [1, None]},
        chosen="A cat.",
        rejected="A dog.",
        candidates=candidates,
        margin=0.5,
        provenance={"a": {"b": 1}},
    )
    write_records(tmp_path / "run" / "out.msgpack", [known, replace(known, id="t")])
    loaded = load_samples(tmp_path / "run" / "out.msgpack", other)
    assert loaded.samples == (known, replace(known, id="t"))
    assert other.get(known.images[0]).getpixel((0, 0)) == (1, 2, 3)
    assert "TRL records, 2 samples (2 with images, 1 different images)" in loaded.description


def test_a_rounds_answers_are_candidates_best_and_worst(store, other, make_scored, tmp_path):
    """Scores 1, 3, 2: chosen is the second, rejected the first, 3 - 1 = 2 apart; a failure is
    none.
    """
    judged = [make_scored(f"r{i}", "s", score) for i, score in enumerate([1.0, 3.0, 2.0, None])]
    path = write(tmp_path / "run" / "dpo" / "rounds" / "r.msgpack", sample(store), *judged)
    (loaded,) = load_samples(path, other).samples
    assert [item.score for item in loaded.candidates] == [1.0, 3.0, 2.0]
    texts = [item.rollout.text for item in judged]
    assert (loaded.chosen, loaded.rejected, loaded.margin) == (texts[1], texts[0], 2.0)
    equal = [make_scored(f"r{i}", "s", 1.0) for i in range(2)]
    path = write(tmp_path / "run" / "equal.msgpack", sample(store), *equal)
    (loaded,) = load_samples(path, other).samples
    assert loaded.chosen is None and len(loaded.candidates) == 2


def test_pairs_are_rows(store, other, make_scored, tmp_path):
    first, second = make_scored("a", "s", 2.0), make_scored("b", "s", 0.5)
    pair = PreferencePair(sample_id="s", chosen=first, rejected=second, margin=1.5)
    path = write(tmp_path / "run" / "pairs.msgpack", sample(store), pair)
    (loaded,) = load_samples(path, other).samples
    assert (loaded.id, loaded.margin) == ("a>b", 1.5)
    assert (loaded.chosen, loaded.rejected) == (first.rollout.text, second.rollout.text)
    path = write(tmp_path / "run" / "lost.msgpack", replace(pair, sample_id="none"))
    with pytest.raises(UserError, match="a pair of 'none', which has no Sample"):
        load_samples(path, other)


def test_what_cannot_be_used_says_so(store, other, tmp_path):
    correction = Correction(sample_id="s", rollout_id="r", turns=())
    path = write(tmp_path / "run" / "corrections.msgpack", correction)
    with pytest.raises(UserError, match="holds no Sample, only Correction"):
        load_samples(path, other)
    path = write(tmp_path / "lonely" / "far" / "away" / "x.msgpack", sample(store))
    with pytest.raises(UserError, match=r"1 of 1 rows cannot be used.*no such image file"):
        load_samples(path, other)
    assert load_samples(path, other, image_root=store.root).samples
    outside = replace(sample(store), images=("../../../etc/hostname",))
    path = write(tmp_path / "run" / "outside.msgpack", outside)
    with pytest.raises(UserError, match="1 of 1 rows cannot be used"):
        load_samples(path, other)
    whole = write(tmp_path / "run" / "cut.msgpack", sample(store), replace(sample(store), id="t"))
    whole.write_bytes(whole.read_bytes()[:-3])
    assert "records, the last" in load_samples(whole, other).description
