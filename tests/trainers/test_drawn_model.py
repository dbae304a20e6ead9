"""The drawn world's model: its tokenizer covers the world, its fast path equals the processor."""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

pytest.importorskip("transformers")

from transformers import AutoModelForImageTextToText, AutoProcessor

from trainers.data import drawn_model, drawn_sft, scenes
from trainers.data.drawn_model import encode_images


def test_every_word_is_one_known_token() -> None:
    assert len(set(drawn_model.WORDS)) == len(drawn_model.WORDS)
    tokenizer = drawn_model.build_tokenizer()
    phase = dataclasses.replace(drawn_sft.BaseRecipe().biased, caption_share=0.3)
    for example in itertools.islice(drawn_sft.biased_examples(phase, 0), 200):
        for turn in example.turns:
            ids = tokenizer.encode(turn.text, add_special_tokens=False)
            assert len(ids) == len(turn.text.split())
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == turn.text


def test_chat_template_by_hand() -> None:
    processor = drawn_model.build_processor()
    question = {"type": "text", "text": "is there a red cross ?"}
    messages = [
        {"role": "user", "content": [{"type": "image"}, question]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": [{"type": "text", "text": "what do you see ?"}]},
    ]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "user : <image> is there a red cross ? assistant : yes </s> "
        "user : what do you see ? assistant :"
    )


def test_images_become_the_processors_pixels_and_one_token_a_patch() -> None:
    processor = drawn_model.build_processor()
    batch = [image for _, image in scenes.held_out_scenes(3)]
    text = "user : <image> describe the image . assistant :"
    full = processor(images=batch, text=[text] * 3, return_tensors="pt")
    torch.testing.assert_close(encode_images(batch), full["pixel_values"], atol=1e-5, rtol=1e-5)
    image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
    # 64 / 16 = 4 patches a side, so that each of the four cells has 2x2 tokens of its own
    assert (full["input_ids"] == image_token).sum(1).tolist() == [16] * 3
    assert drawn_model.build_model(0).config.image_seq_length == 16
    assert scenes.CELL % drawn_model.PATCH_SIZE == 0


def test_model_is_seeded_small_and_tied() -> None:
    first, again, other = (drawn_model.build_model(seed) for seed in (0, 0, 1))
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert 0.8e6 < weights[0].numel() < 1.5e6
    embeddings, head = first.get_input_embeddings(), first.get_output_embeddings()
    assert head.weight is embeddings.weight


def test_folder_round_trip(tmp_path: Path) -> None:
    model, processor = drawn_model.build_model(0).eval(), drawn_model.build_processor()
    drawn_model.save_pretrained_folder(model, processor, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        towers = [name for name in weights.keys() if "vision_tower." in name]  # noqa: SIM118
    assert towers and all("vision_tower.vision_model." in name for name in towers)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    again = AutoProcessor.from_pretrained(tmp_path)
    scene = scenes.draw_scene(random.Random(0))
    image = scenes.render(scene, random.Random(0))
    inputs = again(
        images=image, text="user : <image> what do you see ? assistant :", return_tensors="pt"
    )
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
