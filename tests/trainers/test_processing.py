"""From turns to tokens: what is a target, what is context, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.data.errors import UserError
from trainers.data.model_folder import check_model_folder
from trainers.data.processing import Processing
from trainers.data.records import Turn


def words(processing, ids) -> list[str]:
    return processing.tokenizer.convert_ids_to_tokens([int(i) for i in ids])


def test_chat_text_by_hand(processing):
    turns = (Turn(role="user", text="describe the image .", num_images=1),)
    assert processing.chat_text(turns, add_generation_prompt=True) == (
        "user : <image> describe the image . assistant :"
    )
    answered = (*turns, Turn(role="assistant", text="yes"))
    assert processing.chat_text(answered) == (
        "user : <image> describe the image . assistant : yes </s>"
    )


def test_targets_are_exactly_the_sampled_ids(processing, samples):
    sample = samples[0]
    # A text that tokenises otherwise than it was sampled: ids 9, 9 and EOS are kept as they are.
    sampled = (9, 9, 40, processing.eos_id)
    encoded = processing.encode("row", sample.prompt, sample.images, response_ids=sampled)
    assert tuple(encoded.input_ids[encoded.target_mask]) == sampled
    assert encoded.target_mask[-4:].all() and not encoded.target_mask[:-4].any()


def test_prompt_equals_the_processors_own_tokens(processing, samples):
    sample = samples[0]
    text = processing.chat_text(sample.prompt, add_generation_prompt=True)
    full = processing.processor(
        text=text, images=processing.images(sample.images), return_tensors="pt"
    )
    encoded = processing.encode("row", sample.prompt, sample.images, response_ids=())
    assert encoded.input_ids.tolist() == full["input_ids"][0].tolist()
    torch.testing.assert_close(encoded.model_inputs["pixel_values"], full["pixel_values"])
    assert not encoded.target_mask.any()


def test_assistant_turns_of_the_prompt_are_context(processing, samples):
    prompt = (
        Turn(role="user", text="what do you see ?", num_images=1),
        Turn(role="assistant", text="a red circle top-left ."),
    )
    turns = (
        Turn(role="user", text="is there a red circle ?"),
        Turn(role="assistant", text="yes"),
        Turn(role="user", text="is there a blue cross ?"),
        Turn(role="assistant", text="no"),
    )
    encoded = processing.encode("row", prompt, samples[0].images, turns=turns)
    targets = encoded.input_ids[encoded.target_mask]
    assert words(processing, targets) == ["yes", "</s>", "no", "</s>"]


def test_targets_of_the_whole_conversation_equal_its_one_piece_tokens(processing, samples):
    turns = (
        Turn(role="user", text="is there a red circle ?", num_images=1),
        Turn(role="assistant", text="yes"),
        Turn(role="user", text="what do you see ?"),
        Turn(role="assistant", text="a red circle top-left ."),
    )
    encoded = processing.encode("row", (), samples[0].images, turns=turns)
    full = processing.processor(
        text=processing.chat_text(turns),
        images=processing.images(samples[0].images),
        return_tensors="pt",
    )
    assert encoded.input_ids.tolist() == full["input_ids"][0].tolist()


def test_text_only_rows_need_no_image(processing):
    prompt = (Turn(role="user", text="what do you see ?"),)
    encoded = processing.encode("row", prompt, (), response_ids=(5,))
    assert encoded.model_inputs == {}
    assert encoded.target_mask.sum() == 1


@pytest.mark.parametrize("images", [0, 2])
def test_another_number_of_images_names_the_row(processing, samples, images):
    with pytest.raises(ValueError, match=f"row r7: 1 image placeholders, {images} images"):
        processing.encode("r7", samples[0].prompt, samples[0].images * images, response_ids=(5,))


def test_placeholder_is_never_a_target(processing, samples):
    with pytest.raises(ValueError, match="row r7: <image> among the target tokens"):
        processing.encode(
            "r7",
            samples[0].prompt,
            samples[0].images,
            response_ids=(5, processing.image_token_id),
        )


def test_nothing_to_learn_is_refused(processing, samples):
    with pytest.raises(ValueError, match="row r7: no assistant turn"):
        processing.encode("r7", samples[0].prompt, samples[0].images, turns=())


def test_banned_ids_are_all_specials_but_eos(processing):
    banned = processing.banned_ids()
    assert processing.eos_id not in banned
    assert words(processing, banned) == ["<pad>", "<s>", "<unk>", "<image>"]


def test_rows_of_the_embedding_without_a_token_are_banned(processing, monkeypatch):
    # Real checkpoints pad the embedding; here three more rows than the tokenizer has tokens.
    size = len(processing.tokenizer)
    monkeypatch.setattr(processing.config.text_config, "vocab_size", size + 3)
    assert set(range(size, size + 3)) <= set(processing.banned_ids())


def test_a_prompt_that_is_known_is_the_same_prompt(processing, samples):
    sample, response = samples[0], (9, 40, processing.eos_id)
    ids = processing.expanded_prompt_ids("row", sample.prompt, sample.images)
    for _ in range(2):
        encoded = processing.encode("row", sample.prompt, sample.images, response_ids=response)
        assert encoded.input_ids.tolist() == [*ids, *response]
        encoded.input_ids[:] = 0  # a row's own: what is known does not change with it
    assert processing.expanded_prompt_ids("row", sample.prompt, sample.images) == ids


def test_the_image_of_a_known_prompt_is_looked_up_all_the_same(processing, samples):
    sample, lost = samples[0], ("0" * 64,)
    processing.expanded_prompt_ids("row", sample.prompt, lost)  # alike: any name will do
    with pytest.raises(UserError, match="keep images beside records"):
        _ = processing.encode("row", sample.prompt, lost, response_ids=(9,)).model_inputs


def test_image_cache_is_bounded(tiny_model, store, samples):
    one = 3 * 96 * 96 * 4  # below one image's bytes: the newest alone is kept
    processing = Processing(tiny_model, store, cache_bytes=one // 4)
    first = processing.encode("a", samples[0].prompt, samples[0].images, response_ids=())
    before = first.model_inputs["pixel_values"]
    for sample in samples[1:5]:
        _ = processing.encode("b", sample.prompt, sample.images, response_ids=()).model_inputs
    assert len(processing._images._cache) == 1
    np.testing.assert_array_equal(before, first.model_inputs["pixel_values"])


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        check_model_folder(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(folder), *parts):
        assert part in message


def test_a_complete_folder_is_accepted(folder):
    assert check_model_folder(folder)["model_type"] == "llava"


def test_missing_config(folder):
    (folder / "config.json").unlink()
    refused(folder, "no config.json", "Hugging Face")


def test_config_that_is_not_json(folder):
    (folder / "config.json").write_text("{")
    refused(folder, "not JSON")


def test_unsupported_family(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "blip-2"}))
    refused(folder, "'blip-2' is not supported", "llava")


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (("preprocessor_config.json", "processor_config.json"), "image processor"),
        (("tokenizer.json",), "tokenizer"),
        (("model.safetensors",), "weights"),
    ],
)
def test_missing_part(folder, files, what):
    for file in files:
        (folder / file).unlink(missing_ok=True)
    refused(folder, f"no {what}", "copy it")


def test_missing_chat_template(folder, store):
    for file in folder.iterdir():
        if "chat_template" in file.name:
            file.unlink()
        elif file.suffix == ".json":
            values = json.loads(file.read_text())
            if isinstance(values, dict) and values.pop("chat_template", None):
                file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="no chat template"):
        Processing(folder, store)
