"""Every known format: rows written by hand after the originals, what is kept, what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainers.data.datasets import LoadedData, load_samples
from trainers.data.errors import UserError
from trainers.data.formats.detection import FORMATS, find_format
from trainers.data.formats.names import FORMAT_NAMES
from trainers.data.images import ImageStore
from trainers.data.records import Candidate, Sample, Turn


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "long").mkdir(parents=True)
    (folder / "cat.png").write_bytes(png("red"))
    (folder / "dog.png").write_bytes(png("blue"))
    (folder / "long" / "12.png").write_bytes(png("green"))
    (folder / "cut.png").write_bytes(png("red")[:-30])
    Image.new("RGB", (200, 100)).save(folder / "big.png")
    (tmp_path / "outside.png").write_bytes(png("white"))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", max_pixels=10_000)


def load(folder: Path, store: ImageStore, *rows: dict[str, Any], format: str = "auto"):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_samples(path, store, format=format)


def one(folder: Path, store: ImageStore, row: dict[str, Any]) -> Sample:
    (sample,) = load(folder, store, row).samples
    return sample


def turns(text: str, num_images: int = 1) -> tuple[Turn, ...]:
    return (Turn(role="user", text=text, num_images=num_images),)


TRL = {"prompt": "What is it?", "images": ["cat.png"], "chosen": "A cat.", "rejected": "A dog."}
RLAIF_V = {
    "ds_name": "RLAIF-V",
    "image": "cat.png",
    "question": "What is it?",
    "chosen": "A cat.",
    "rejected": "A dog.",
    "origin_dataset": "VQAv2",
    "origin_split": '{"model": "llava-7b", "type": "question_answering"}',
    "idx": 7,
    "image_path": "RLAIF-V_0/7.jpg",
    "logps": "[-1.5, -0.5, [-1.0, -0.5], -3.0, -1.5, [-2.0, -1.0]]",
}
MM_RLHF = {
    "id": "12",
    "image": "long/12.png",
    "has_image": True,
    "prompt": "What is it?",
    "chosen": "A cat.",
    "rejected": "A dog.",
    "chosen_reason": "Names the animal.",
    "rejected_reason": "The animal is a cat.",
    "is_tie": False,
    "ls_factor": 0.75,
    "reference_chosen_logp": -12.5,
    "reference_rejected_logp": -11.0,
}
LLAVA = {
    "id": "000000033471",
    "image": "cat.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "What colour?"},
        {"from": "gpt", "value": "Red."},
    ],
}
BPO = {
    "image": "cat.png",
    "prompt": "<image>\nDescribe it.",
    "completions": [
        {"score": 1, "response": "A red cat.", "type": "gt"},
        {"score": 0, "response": "A blue cat.", "type": "llm-hal"},
        {"score": 0, "response": "A dog.", "type": "mllm-hal"},
    ],
}


def annotations(*ratings: str) -> dict[str, dict[str, str]]:
    names = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
    return {
        name: {"Rating": rating, "Rationale": f"because {rating}"}
        for name, rating in zip(names, ratings, strict=True)
    }


VLFEEDBACK = {
    "id": "svit-1",
    "prompt": "What is it?",
    "img_path": "cat.png",
    "models": ["a", "b", "c"],
    "completions": [
        {"model": "a", "response": "A dog.", "annotations": annotations("2", "1", "5")},
        {"model": "b", "response": "A cat.", "annotations": annotations("5", "4", "5")},
        {"model": "c", "response": "Hm.", "annotations": annotations("N/A", "1", "5")},
    ],
}
MS_SWIFT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image><image>What differs?"},
        {"role": "assistant", "content": "The colour."},
    ],
    "images": ["cat.png", "dog.png"],
    "rejected_response": "Nothing.",
}
ROWS = {
    "trl": TRL,
    "rlaif-v": RLAIF_V,
    "mm-rlhf": MM_RLHF,
    "llava": LLAVA,
    "bpo": BPO,
    "vlfeedback": VLFEEDBACK,
    "ms-swift": MS_SWIFT,
}


def test_every_format_has_an_example_row_and_a_name() -> None:
    assert tuple(ROWS) == FORMAT_NAMES[1:] == tuple(item.name for item in FORMATS)


@pytest.mark.parametrize("name", ROWS)
def test_format_is_detected_and_said(name: str, folder: Path, store: ImageStore) -> None:
    title = next(item.title for item in FORMATS if item.name == name)
    data = load(folder, store, ROWS[name])
    assert data.description.startswith(f"rows.jsonl: {title} JSONL, 1 samples (1 with images, ")
    forced = load(folder, store, ROWS[name], format=name)
    assert forced == data


@pytest.mark.parametrize("name", ROWS)
def test_the_same_rows_in_an_array_and_in_parquet(
    name: str, folder: Path, store: ImageStore
) -> None:
    (expected,) = load(folder, store, ROWS[name]).samples
    (folder / "rows.json").write_text(json.dumps([ROWS[name]] * 2, indent=1))
    pq.write_table(pa.Table.from_pylist([ROWS[name]] * 2), folder / "rows.parquet")
    for suffix in ("json", "parquet"):
        data = load_samples(folder / f"rows.{suffix}", store, limit=1)
        assert data.samples == (expected,)


def test_rlaif_v(folder: Path, store: ImageStore) -> None:
    assert one(folder, store, RLAIF_V) == Sample(
        id="7#1",
        prompt=turns("What is it?"),
        images=(store.put_file(folder / "cat.png"),),
        kind="question_answering",
        chosen="A cat.",
        rejected="A dog.",
        provenance={
            "id": "7",
            **{
                name: RLAIF_V[name]
                for name in ("ds_name", "image_path", "origin_dataset", "origin_split", "logps")
            },
        },
    )


def test_rlaif_v_parquet_holds_the_image(folder: Path, store: ImageStore) -> None:
    row = {**RLAIF_V, "image": {"bytes": png("red"), "path": "7.jpg"}}
    pq.write_table(pa.Table.from_pylist([row, row]), folder / "rlaif.parquet")
    data = load_samples(folder / "rlaif.parquet", store)
    assert "RLAIF-V parquet, 2 samples (2 with images, 1 different" in data.description
    assert [sample.id for sample in data.samples] == ["7#1", "7#2"]
    assert data.samples[0].images == (store.put_file(folder / "cat.png"),)


def test_rlaif_v_generated_pairs_name_the_image_file(folder: Path, store: ImageStore) -> None:
    row = {"image_path": "cat.png", "question": "q", "chosen": "a", "rejected": "b"}
    assert one(folder, store, row).images == (store.put_file(folder / "cat.png"),)


def test_mm_rlhf(folder: Path, store: ImageStore) -> None:
    sample = one(folder, store, MM_RLHF)
    assert (sample.id, sample.kind, sample.margin, sample.is_tie) == ("12#1", "long", 0.75, False)
    assert sample.candidates == (
        Candidate(text="A cat.", label="chosen", critique="Names the animal."),
        Candidate(text="A dog.", label="rejected", critique="The animal is a cat."),
    )
    assert sample.provenance == {
        "id": "12",
        "reference_chosen_logp": -12.5,
        "reference_rejected_logp": -11.0,
    }


def test_mm_rlhf_ties_missing_reasons_and_video(folder: Path, store: ImageStore) -> None:
    tie = {**MM_RLHF, "is_tie": True, "rejected_reason": "no_critic"}
    rows = [MM_RLHF] * 20 + [tie, {**MM_RLHF, "image": None, "video": "video/1.mp4"}]
    data = load(folder, store, *rows)
    assert data.samples[20].is_tie
    assert [item.critique for item in data.samples[20].candidates] == ["Names the animal.", None]
    assert [bad.reason for bad in data.dropped] == [
        "the row has video; only text and images are read"
    ]
    assert "chosen, rejected, candidates, critiques, ties, margin; 1 rows" in data.description


def test_llava_keeps_earlier_turns_and_images_of_their_turn(
    folder: Path, store: ImageStore
) -> None:
    sample = one(folder, store, LLAVA)
    assert sample.id == "000000033471#1"
    assert sample.prompt == (
        *turns("What is it?"),
        Turn(role="assistant", text="A cat."),
        Turn(role="user", text="What colour?"),
    )
    assert (sample.chosen, sample.rejected) == ("Red.", None)
    asked = {**LLAVA, "conversations": LLAVA["conversations"][:1], "system": "Be brief."}
    sample = one(folder, store, asked)
    assert sample.prompt == (Turn(role="system", text="Be brief."), *turns("What is it?"))
    assert sample.chosen is None


def test_pairs_in_llava_files(folder: Path, store: ImageStore) -> None:
    worse = [*LLAVA["conversations"][:3], {"from": "gpt", "value": "Blue."}]
    povid = one(folder, store, {**LLAVA, "rejected_conversations": worse})
    assert (povid.chosen, povid.rejected) == ("Red.", "Blue.")
    asked = {**LLAVA, "conversations": LLAVA["conversations"][:1]}
    factory = one(
        folder,
        store,
        {
            **asked,
            "chosen": {"from": "gpt", "value": "A cat."},
            "rejected": {"from": "gpt", "value": "A dog."},
        },
    )
    assert (factory.chosen, factory.rejected) == ("A cat.", "A dog.")
    outputs = {
        "output_1": {"from": "llm", "value": "A dog."},
        "output_2": {"from": "gpt", "value": "A cat."},
    }
    outputs["output_1"]["from"] = "gpt"
    rlhf = one(folder, store, {**asked, **outputs, "preference": 2})
    assert (rlhf.chosen, rlhf.rejected, rlhf.is_tie) == ("A cat.", "A dog.", False)
    tie = one(folder, store, {**asked, **outputs, "preference": 0})
    assert (tie.chosen, tie.rejected, tie.is_tie) == (None, None, True)
    assert [item.text for item in tie.candidates] == ["A dog.", "A cat."]


def test_bpo_keeps_every_completion(folder: Path, store: ImageStore) -> None:
    sample = one(folder, store, BPO)
    assert sample.prompt == turns("Describe it.")
    assert sample.candidates == (
        Candidate(text="A red cat.", label="gt", score=1.0),
        Candidate(text="A blue cat.", label="llm-hal", score=0.0),
        Candidate(text="A dog.", label="mllm-hal", score=0.0),
    )
    # the first of the equally bad
    assert (sample.chosen, sample.rejected) == ("A red cat.", "A blue cat.")
    even = [{"score": 1, "response": text, "type": "gt"} for text in ("a", "b")]
    sample = one(folder, store, {**BPO, "completions": even})
    assert (sample.chosen, sample.rejected, sample.is_tie) == (None, None, True)
    assert one(folder, store, {**BPO, "completions": even[:1]}).chosen == "a"


def test_vlfeedback_scores_are_mean_ratings(folder: Path, store: ImageStore) -> None:
    sample = one(folder, store, VLFEEDBACK)
    assert (sample.id, sample.chosen, sample.rejected) == ("svit-1", "A cat.", "A dog.")
    first, second, third = sample.candidates
    assert first.score == pytest.approx((2 + 1 + 5) / 3)
    assert second.score == pytest.approx((5 + 4 + 5) / 3)
    assert third.score is None  # one rating is "N/A"
    assert third.aspects == {"Visual Faithfulness": 1.0, "Ethical Considerations": 5.0}
    assert first.label == "a"
    assert first.critique == (
        "Helpfulness: because 2\nVisual Faithfulness: because 1\nEthical Considerations: because 5"
    )


def test_vlfeedback_parquet_has_an_object_of_lists(folder: Path, store: ImageStore) -> None:
    items = VLFEEDBACK["completions"]
    lists = {name: [item[name] for item in items] for name in items[0]}
    row = {**VLFEEDBACK, "completions": lists, "image": {"bytes": png("red"), "path": None}}
    pq.write_table(pa.Table.from_pylist([row]), folder / "vl.parquet")
    (sample,) = load_samples(folder / "vl.parquet", store).samples
    assert sample == one(folder, store, VLFEEDBACK)
    lists["response"].pop()
    with pytest.raises(UserError, match="lists of different lengths"):
        load(folder, store, {**VLFEEDBACK, "completions": lists})


def test_ms_swift(folder: Path, store: ImageStore) -> None:
    sample = one(folder, store, MS_SWIFT)
    assert sample.prompt == (Turn(role="system", text="Be brief."), *turns("What differs?", 2))
    assert (sample.chosen, sample.rejected) == ("The colour.", "Nothing.")
    rejected = [*MS_SWIFT["messages"][:2], {"role": "assistant", "content": "Nothing."}]
    row = {name: MS_SWIFT[name] for name in ("messages", "images")}
    again = {**row, "rejected_messages": rejected, "rejected_images": ["cat.png", "dog.png"]}
    assert one(folder, store, again) == sample
    disliked = one(folder, store, {**row, "label": False})
    assert (disliked.chosen, disliked.rejected) == (None, "The colour.")
    assert one(folder, store, {**row, "margin": 1.5}).margin == 1.5
    asked = one(folder, store, {**row, "messages": row["messages"][:2], "solution": "B"})
    assert (asked.chosen, asked.truth) == (None, {"answer": "B"})


def test_ms_swift_queries(folder: Path, store: ImageStore) -> None:
    row = {
        "system": "s",
        "history": [["<image>q1", "r1"]],
        "query": "q2",
        "response": "r2",
        "images": ["cat.png"],
    }
    sample = one(folder, store, row)
    assert sample.prompt == (
        Turn(role="system", text="s"),
        *turns("q1"),
        Turn(role="assistant", text="r1"),
        Turn(role="user", text="q2"),
    )
    assert sample.chosen == "r2"


def test_trl_unpaired_and_implicit_prompts(folder: Path, store: ImageStore) -> None:
    row = {"prompt": "Hi.", "completion": "Ho."}
    assert one(folder, store, {**row, "label": True}).chosen == "Ho."
    disliked = one(folder, store, {**row, "label": False})
    assert (disliked.chosen, disliked.rejected) == (None, "Ho.")
    asked = [{"role": "user", "content": "Hi."}]
    sides = [[*asked, {"role": "assistant", "content": text}] for text in ("Ho.", "No.")]
    sample = one(folder, store, {"chosen": sides[0], "rejected": sides[1]})
    assert (sample.prompt, sample.chosen, sample.rejected) == (turns("Hi.", 0), "Ho.", "No.")
    # equal answers share their last turn, too
    sample = one(folder, store, {"chosen": sides[0], "rejected": sides[0]})
    assert (sample.prompt, sample.chosen, sample.rejected) == (turns("Hi.", 0), "Ho.", "Ho.")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("trl", {"label": "yes"}, "label is 'yes'; use true or false"),
        ("trl", {"margin": "wide"}, "margin is 'wide', not a number"),
        ("trl", {"margin": float("nan")}, "margin is 'nan', not a number"),
        ("trl", {"candidates": [{"score": 1}]}, "candidate 1 has no text"),
        ("trl", {"candidates": "x"}, "candidates is not a list"),
        ("rlaif-v", {"question": 3}, "question is a int, not text"),
        ("rlaif-v", {"question": " "}, "no question"),
        ("mm-rlhf", {"prompt": None}, "no prompt"),
        ("mm-rlhf", {"chosen_reason": ["a"]}, "chosen_reason is a list, not text"),
        ("mm-rlhf", {"ls_factor": True}, "ls_factor is 'True', not a number"),
        ("llava", {"conversations": []}, "conversations is not a list of turns"),
        ("llava", {"conversations": [{"from": "dog", "value": "x"}]}, "is from 'dog'; use human"),
        ("llava", {"conversations": [{"from": "gpt", "value": "x"}]}, "prompt is empty"),
        ("llava", {"conversations": [{"from": "human", "value": None}]}, "value that is a None"),
        ("llava", {"rejected_conversations": [{"from": "gpt", "value": "x"}]}, "other turns than"),
        ("llava", {"output_1": {"from": "gpt", "value": "x"}}, "one of them is missing"),
        ("llava", {"video": "1.mp4"}, "the row has video"),
        ("bpo", {"completions": []}, "completions is not a list"),
        ("bpo", {"completions": [{"score": 1}]}, "completion 1 has no response"),
        ("bpo", {"completions": [{"response": "a", "score": "x"}]}, "score is 'x'"),
        ("vlfeedback", {"completions": [{"response": "a", "annotations": [1]}]}, "that are a list"),
        ("vlfeedback", {"completions": [{"response": "<image>", "annotations": {}}]}, "is empty"),
        ("ms-swift", {"messages": []}, "messages is not a list"),
        ("ms-swift", {"tools": "[]x"}, "the row has tools"),
        ("ms-swift", {"rejected_images": ["cat.png"]}, "rejected_images differ"),
        ("ms-swift", {"rejected_messages": [{"role": "user", "content": "x"}]}, "other turns"),
        ("ms-swift", {"label": False}, "label is false and there is a rejected answer"),
        ("ms-swift", {"rejected_response": "at <bbox>"}, "stand for boxes"),
    ],
)
def test_bad_rows_are_dropped_with_a_reason(
    name: str, change: dict[str, Any], message: str, folder: Path, store: ImageStore
) -> None:
    data = load(folder, store, *[unnamed(ROWS[name])] * 20, {**ROWS[name], **change}, format=name)
    (dropped,) = data.dropped
    assert (dropped.row, len(data.samples)) == (21, 20)
    assert message in dropped.reason


def unnamed(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "id"}


IMAGE_COLUMN = {name: "images" if "images" in row else "image" for name, row in ROWS.items()}
IMAGE_COLUMN["vlfeedback"] = "img_path"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("../outside.png", "leaves"),
        ("/etc/hostname", "leaves"),
        ("long/../../outside.png", "leaves"),
        ("https://example.org/cat.png", "is a URL; download it"),
        ("data:image/png;base64,AAAA", "is a URL"),
        ("cut.png", "damaged or cut off"),
        ("big.png", "200x100 pixels, allowed are 1 to 10000"),
        ("none.png", "no such image file"),
        ("rows.jsonl", "not an image"),
    ],
)
@pytest.mark.parametrize("name", ROWS)
def test_no_format_lets_a_bad_image_in(
    name: str, image: str, message: str, folder: Path, store: ImageStore
) -> None:
    row = unnamed(ROWS[name])
    column = IMAGE_COLUMN[name]
    bad = {**row, column: [image, image] if name == "ms-swift" else image}
    if column == "images" and name != "ms-swift":
        bad[column] = [image]
    data = load(folder, store, *[row] * 20, bad, format=name)
    assert len(data.samples) == 20
    assert message in data.dropped[0].reason


def test_ambiguous_columns_ask_for_the_format(folder: Path, store: ImageStore) -> None:
    row = {**TRL, "conversations": LLAVA["conversations"], "image": "cat.png"}
    with pytest.raises(UserError) as caught:
        load(folder, store, row)
    assert "rows.jsonl: columns chosen, conversations, image, images, prompt, rejected fit" in str(
        caught.value
    )
    assert "TRL and LLaVA; set data.format (--format) to trl or llava" in str(caught.value)
    assert "\n" not in str(caught.value)
    data: LoadedData = load(folder, store, {**row, "images": None}, format="llava")
    assert data.samples[0].chosen in ("Red.", "A cat.")


def test_unknown_columns_name_what_is_known() -> None:
    with pytest.raises(UserError) as caught:
        find_format([{"text": "a", "nothing": None}], source="x.jsonl")
    line = str(caught.value)
    assert line.startswith("x.jsonl: no known format; columns found: text; rename")
    assert all(item.title in line for item in FORMATS)
    with pytest.raises(UserError, match=r"data.format=cvs: unknown format; use auto, trl"):
        find_format([], "cvs")
