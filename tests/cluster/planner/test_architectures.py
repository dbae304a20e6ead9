import json
import socket
from functools import cache
from pathlib import Path

import pytest

from cluster.planner.architectures import (
    Architecture,
    load_architecture,
    meta_model,
    preset_names,
)
from trainers.data.errors import UserError

# Totals of the released safetensors, each tied tensor once. That of LLaVA-1.5-13B is for the
# vocabulary of 32,000 that Vicuna has; the -hf conversion has 64 rows more in both embeddings.
PUBLISHED = {
    "llava-1.5-7b": 7_063_427_072,
    "llava-1.5-13b": 13_350_839_296 + 2 * 64 * 5120,
    "llava-onevision-7b": 8_030_348_832,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen2.5-vl-32b": 33_452_718_336,
    "qwen2.5-vl-72b": 73_410_777_344,
    "qwen3-vl-8b": 8_767_123_696,
    "internvl3-8b": 7_944_373_760,
    "smolvlm2-256m": 256_484_928,
    "smolvlm2-500m": 507_482_304,
    "smolvlm2-2.2b": 2_246_784_880,
}

# A 480 x 640 photograph. Qwen2.5-VL: 17 x 23 squares of 28 pixels; Qwen3-VL: 15 x 20 of 32.
# LLaVA-OneVision: 54 x 54 patches of 2 x 2 tiles, of which 40 rows remain without padding, with a
# newline each, and 27 x 27 of the whole. InternVL: 3 x 4 tiles and the whole, 256 each. SmolVLM:
# the same with 8 x 8 or, in the largest, 9 x 9 each.
IMAGE_TOKENS = {
    "llava-1.5-7b": 576,
    "llava-onevision-7b": 40 * 54 + 40 + 27 * 27,
    "qwen2.5-vl-7b": 17 * 23,
    "qwen3-vl-8b": 15 * 20,
    "internvl3-8b": 13 * 256,
    "smolvlm2-256m": 13 * 64,
    "smolvlm2-2.2b": 13 * 81,
}


@cache
def preset(name: str) -> Architecture:
    return load_architecture(name)


def write(folder: Path, config: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def tiny(tiny_model: str) -> dict:
    """The config of a folder that transformers wrote."""
    return json.loads((Path(tiny_model) / "config.json").read_text())


def test_every_preset_is_listed_here():
    assert preset_names() == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_size(name):
    architecture = preset(name)
    assert architecture.num_parameters == PUBLISHED[name]
    parts = {each.part for each in architecture.parameters}
    assert parts == {"vision", "language"}


@pytest.mark.parametrize("name", IMAGE_TOKENS)
def test_tokens_of_a_photograph(name):
    assert preset(name).image_tokens() == IMAGE_TOKENS[name]


def test_tokens_of_other_images():
    assert preset("llava-1.5-7b").image_tokens(32, 2000) == 576
    assert preset("qwen2.5-vl-7b").image_tokens(280, 56) == 10 * 2
    # A square becomes one tile where four would be twice its area and more, and needs no thumbnail.
    assert preset("internvl3-8b").image_tokens(448, 448) == 256
    assert preset("internvl3-8b").image_tokens(896, 896) == (4 + 1) * 256
    # Four tiles along the longer side, whichever it is.
    smol = preset("smolvlm2-256m")
    assert smol.image_tokens(100, 400) == smol.image_tokens(400, 100) == (4 * 1 + 1) * 64


def test_a_tied_tensor_stands_once():
    names = [each.name for each in preset("qwen2.5-vl-3b").parameters]
    assert "lm_head.weight" not in names and len(names) == len(set(names))
    assert "lm_head.weight" in [each.name for each in preset("qwen2.5-vl-7b").parameters]


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-onevision-7b", "smolvlm2-256m"])
def test_projectors_are_vision_and_embeddings_are_language(name):
    parts = {each.name: each.part for each in preset(name).parameters}
    for key, part in parts.items():
        is_language = "language_model" in key or "text_model" in key or "lm_head" in key
        assert part == ("language" if is_language else "vision"), key


def test_properties_read_the_language_model():
    qwen = preset("qwen2.5-vl-7b")
    assert (qwen.text_hidden_size, qwen.text_intermediate_size) == (3584, 18944)
    assert (qwen.num_text_layers, qwen.vocab_size) == (28, 152064)
    assert (qwen.num_attention_heads, qwen.num_key_value_heads, qwen.head_dim) == (28, 4, 128)
    assert preset("llava-1.5-7b").num_key_value_heads == 32
    assert (qwen.name, qwen.family) == ("qwen2.5-vl-7b", "qwen2_5_vl")


def test_a_folder_gives_the_shapes_of_the_real_module(tiny_model, monkeypatch):
    from transformers import AutoModelForImageTextToText

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    architecture = load_architecture(tiny_model)
    assert architecture.name == Path(tiny_model).name
    real = AutoModelForImageTextToText.from_pretrained(tiny_model, local_files_only=True)
    assert [(each.name, each.shape) for each in architecture.parameters] == [
        (name, tuple(each.shape)) for name, each in real.named_parameters()
    ]
    assert [(each.name, each.shape, each.dtype) for each in architecture.buffers] == [
        (name, tuple(each.shape), each.dtype) for name, each in real.named_buffers()
    ]
    assert sum(each.num_bytes for each in architecture.buffers) == sum(
        each.nbytes for each in real.buffers()
    )
    assert architecture.image_tokens() == real.config.image_seq_length


def test_the_meta_model_has_no_storage():
    architecture = preset("smolvlm2-256m")
    model = meta_model(architecture)
    assert {each.device.type for each in model.parameters()} == {"meta"}
    assert sum(each.numel() for each in model.parameters()) == architecture.num_parameters


def test_flat_configs_of_qwen_are_read(tmp_path):
    from cluster.planner.architectures import PRESETS

    config = json.loads((PRESETS / "qwen2.5-vl-3b.json").read_text())
    text = config.pop("text_config")
    flat = {**text, **config, "rope_theta": 1e6}
    assert load_architecture(write(tmp_path / "flat", flat)).num_parameters == 3_754_622_976
    del flat["num_key_value_heads"]
    with pytest.raises(UserError, match=r"no text_config\.num_key_value_heads"):
        load_architecture(write(tmp_path / "flat", flat))


def test_unknown_names_get_the_nearest():
    with pytest.raises(UserError, match=r"did you mean .*qwen2\.5-vl-7b.*presets: internvl3-8b"):
        load_architecture("Qwen/Qwen2.5-VL-7B-Instruct")
    with pytest.raises(UserError, match=r"neither a preset nor a folder; presets: .*works too"):
        load_architecture("/nowhere/xyz")


def test_names_in_capitals_are_known():
    assert load_architecture("SmolVLM2-256M").name == "smolvlm2-256m"


def test_folders_that_cannot_be_planned_for(tmp_path, tiny):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"empty: no config\.json in this folder"):
        load_architecture(str(empty))
    (empty / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not readable as JSON"):
        load_architecture(str(empty))
    with pytest.raises(UserError, match="no model_type"):
        load_architecture(write(tmp_path / "untyped", {"hidden_size": 8}))
    with pytest.raises(UserError, match="transformers cannot read it"):
        load_architecture(write(tmp_path / "unheard-of", {"model_type": "unheard_of"}))
    with pytest.raises(UserError, match="'llama' is not a vision-language model"):
        load_architecture(write(tmp_path / "text", {"model_type": "llama"}))
    blind = {key: value for key, value in tiny.items() if key != "vision_config"}
    with pytest.raises(UserError, match="no vision_config; the planner would have to guess it"):
        load_architecture(write(tmp_path / "blind", blind))


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_missing_size_is_named(tmp_path, tiny, field):
    del tiny["text_config"][field]
    with pytest.raises(UserError, match=rf"no text_config\.{field}; the planner would have to"):
        load_architecture(write(tmp_path / "sparse", tiny))


def test_a_size_that_follows_from_others_may_be_missing(tmp_path, tiny):
    del tiny["text_config"]["num_key_value_heads"], tiny["text_config"]["head_dim"]
    architecture = load_architecture(write(tmp_path / "plain", tiny))
    assert architecture.num_key_value_heads == architecture.num_attention_heads
    assert architecture.head_dim * architecture.num_attention_heads == 128


def test_sizes_that_do_not_fit_are_one_line(tmp_path, tiny):
    tiny["text_config"]["hidden_size"] = "wide"
    with pytest.raises(UserError, match=r"cannot read it .*hidden_size") as error:
        load_architecture(write(tmp_path / "typed", tiny))
    assert "\n" not in str(error.value)
    tiny["text_config"] |= {"hidden_size": 128, "pad_token_id": 10**6}
    with pytest.raises(UserError, match="cannot build it"):
        load_architecture(write(tmp_path / "odd", tiny))


def test_a_model_whose_tower_cannot_be_found(tmp_path):
    from transformers import GitConfig

    GitConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="tower cannot be told apart"):
        load_architecture(str(tmp_path))


def test_presets_load_without_a_word(capfd):
    load_architecture("smolvlm2-256m")
    assert capfd.readouterr() == ("", "")


def test_unknown_image_tokens_are_said(tmp_path):
    from transformers import Gemma3Config

    Gemma3Config().save_pretrained(tmp_path)
    architecture = load_architecture(str(tmp_path))
    with pytest.raises(UserError, match="a gemma3 model makes of an image is not known"):
        architecture.image_tokens()
