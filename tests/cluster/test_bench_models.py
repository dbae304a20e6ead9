"""`quartet bench memory` of presets and config folders: what is built, fed, and refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from actors.modules import PolicyModule, load_vlm
from cluster import bench_plan
from cluster.bench import Load, bench_memory, write
from cluster.bench_models import find_model, let_end
from cluster.bench_plan import lacking
from cluster.bench_table import differences, tables
from cluster.cli import main
from trainers.batch import Row, collate, encode_row
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.data.scenes import scene_samples

TEXT = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 120,
    "max_position_embeddings": 256,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "smolvlm": {
        "model_type": "smolvlm",
        "image_token_id": 110,
        "scale_factor": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
        "vision_config": {"model_type": "smolvlm_vision", **VISION},
        "text_config": {**TEXT, "pad_token_id": 2},
    },
    "llava": {
        "model_type": "llava",
        "image_token_index": 100,
        "image_seq_length": 16,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **VISION},
        "text_config": TEXT,
    },
}


@pytest.fixture
def configs(tmp_path) -> dict[str, Path]:
    """Folders with a config as a preset's, of a few thousand parameters, and nothing else."""
    folders = {}
    for name, config in CONFIGS.items():
        folders[name] = tmp_path / name
        folders[name].mkdir()
        (folders[name] / "config.json").write_text(json.dumps(config))
    return folders


def encoded(folder: Path, store: ImageStore):
    processing = Processing(folder, store)
    (sample,) = scene_samples(0, 1, store.put_image)
    row = Row.of_response(sample, (8, 9, processing.eos_id), "r")
    return processing, collate([row], [encode_row(row, processing)], processing)


@pytest.mark.parametrize(
    ("name", "tokens"), [("llava-1.5-7b", 576), ("smolvlm2-256m", 64), ("smolvlm2-2.2b", 81)]
)
def test_a_preset_is_fed_as_many_tokens_as_its_tower_makes(tmp_path, name, tokens):
    # 24 x 24 patches; 32 x 32 patches, 16 to a token; 27 x 27 patches, 9 to a token.
    model = find_model(name, tmp_path)
    processing, batch = encoded(model.folder, ImageStore(tmp_path / "images"))
    image = model.architecture.config.image_token_id
    assert int((batch.input_ids_BT == image).sum()) == tokens
    assert processing.image_token_id == image
    # Every row of the embedding is a token, so that none but the special ones is forbidden.
    assert len(processing.tokenizer) == processing.vocab_size == model.architecture.vocab_size
    assert len(processing.banned_ids()) < 10
    assert sorted(processing.tokenizer.get_vocab().values()) == list(range(processing.vocab_size))
    assert not list(model.folder.glob("*.safetensors"))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_built_folder_takes_a_row_with_its_image(configs, tmp_path, family, dtype):
    model = find_model(str(configs[family]), tmp_path)
    model.build(dtype)
    vlm = load_vlm(model.folder, dtype)
    assert sum(each.numel() for each in vlm.parameters()) == model.architecture.num_parameters
    # vLLM looks for CLIP's weights where the released folders have them.
    stored = load_file(model.folder / "model.safetensors")
    in_tower = [name for name in stored if "vision_tower." in name]
    assert all(name.startswith("vision_tower.vision_model.") for name in in_tower)
    assert bool(in_tower) == (family == "llava")
    torch.manual_seed(0)
    drawn = AutoModelForImageTextToText.from_config(model.architecture.config, dtype=dtype)
    processing, batch = encoded(model.folder, ImageStore(tmp_path / "images"))
    let_end(drawn, processing.eos_id)
    for (name, own), loaded in zip(
        drawn.state_dict().items(), vlm.state_dict().values(), strict=True
    ):
        assert torch.equal(own, loaded), name  # every tensor was found in the file
    ends = vlm.get_output_embeddings().weight[processing.eos_id].float().norm()
    spread = 1 + math.log(processing.vocab_size) / 2  # else no answer would have an end
    assert ends.item() == pytest.approx(spread, rel=1e-2)
    module = PolicyModule(vlm, banned_ids=processing.banned_ids())
    with torch.no_grad():
        seen = module(batch).logprobs_BR
        batch.model_inputs["pixel_values"] = -batch.model_inputs["pixel_values"]
        other = module(batch).logprobs_BR
    assert seen.shape == (1, 3) and torch.isfinite(seen).all()
    assert not torch.equal(seen, other)  # the image reaches the answer


@pytest.mark.parametrize(
    ("name", "family"), [("qwen3-vl-8b", "qwen3_vl"), ("internvl3-8b", "internvl")]
)
def test_a_family_that_cannot_be_fed_is_named(capsys, name, family):
    assert main(["bench", "memory", "--models", "drawn", name]) == 2
    error = capsys.readouterr().err
    assert f"--models {name}: a {family} model cannot be fed" in error
    assert (
        "give a preset or folder of llava, smolvlm, qwen2_5_vl" in error and error.count("\n") == 1
    )


def test_an_incomplete_model_folder_is_refused(capsys, configs):
    (configs["llava"] / "tokenizer.json").write_text("{}")
    assert main(["bench", "memory", "--models", str(configs["llava"])]) == 2
    error = capsys.readouterr().err
    assert "no image processor" in error and error.count("\n") == 1


def test_a_package_that_the_processor_lacks_is_named(configs, tmp_path, monkeypatch):
    model = find_model(str(configs["smolvlm"]), tmp_path)

    def needs_num2words(*_: object, **__: object) -> None:
        raise ImportError("Package `num2words` is required\nInstall it")

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", needs_num2words)
    with pytest.raises(
        UserError, match="cannot be loaded: Package `num2words` is required Install"
    ):
        Processing(model.folder, ImageStore(tmp_path / "images"))


def test_what_does_not_fit_is_a_row_and_is_not_built(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_plan, "free_host", lambda: 10_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        "actors.train.TrainActor.connect", None
    )  # the first thing that a step needs
    load = Load(batch=2, sequence=4)
    cells = bench_memory([str(configs["llava"])], ["dpo", "nsft"], load, ["lora", "offload"])
    assert len(cells) == 4
    write(cells, load, tmp_path / "memory.json")
    result = json.loads((tmp_path / "memory.json").read_text())
    for cell in result["cells"]:
        both = [*cell["planned"].values(), *cell["planned_host"].values()]
        assert cell["fits"] is False and cell["free"] == 10_000
        assert cell["needed"] == sum(sum(kinds.values()) for kinds in both)
    lora, offload = tables(result)
    assert lora.row_count == offload.row_count == 2
    assert str(lora.caption).startswith(
        "dpo does not fit: needs 0.0 GB, 0.0 free (predicted)\nnsft"
    )
    # Against a baseline that has it, it is a change.
    first = result["cells"][0]
    known = {"cells": [{**first, "fits": True, "peak": 1}]}
    assert "does not fit" in differences({"cells": [first]}, known)[0]


def test_device_and_host_are_one_memory_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench_plan, "free_host", lambda: 99)
    planned, host = {"policy": {"weights": 60}}, {"policy": {"optimizer": 40}}
    assert lacking(planned, host) == (100, 99)
    assert lacking(planned, {}) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60, 80))
    assert lacking(planned, host) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (59, 80))
    assert lacking(planned, host) == (60, 59)


def test_a_gib_is_left_to_the_rest(monkeypatch):
    monkeypatch.setattr(bench_plan, "available_memory", lambda: 3.0)
    assert bench_plan.free_host() == 2 * 2**30
    monkeypatch.setattr(bench_plan, "available_memory", lambda: 0.5)
    assert bench_plan.free_host() == 0


@pytest.mark.slow
@pytest.mark.deepspeed
def test_config_folders_take_real_steps(configs, tmp_path):
    """A process of its own, since DeepSpeed joins one group in a process's life."""
    output = tmp_path / "memory.json"
    models = " ".join(str(folder) for folder in configs.values())
    command = f"-m cluster.cli bench memory --models {models} --methods dpo"
    command += f" --regimes full lora --batch 2 --sequence 8 --output {output}"
    done = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    cells = json.loads(output.read_text())["cells"]
    assert len(cells) == 4 and all(cell["fits"] for cell in cells)
    for cell in cells:
        assert cell["seconds_per_step"] > 0
        for copy in ("policy", "reference"):
            for kind in {"weights", "optimizer"} & set(cell["measured"].get(copy, {})):
                assert cell["measured"][copy][kind] == cell["planned"][copy][kind]
