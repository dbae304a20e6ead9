"""Every family in the real vLLM engine: export, parity, sync, adapters (`in_engine.py`)."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from actors.modules import load_vlm
from actors.train_spec import TrainSpec
from actors.weight_sync import checkpoint_tensors
from tests.families.builders import BUILDERS
from trainers.data.model_folder import check_model_folder

FAST = ("qwen2_5_vl",)
"""LLaVA-1.5 has `tests/actors/test_engine.py`."""
FAMILIES = [
    pytest.param(family, marks=() if family in FAST else (pytest.mark.slow,)) for family in BUILDERS
]
ROOT = Path(__file__).parents[2]


def tensor_names(folder: str | Path) -> set[str]:
    with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
        return set(file.keys())


@pytest.mark.vllm
@pytest.mark.deepspeed
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_in_the_engine(
    train_actor, tiny_folder, pictures, prompts, tmp_path, family, record
):
    released, final = tiny_folder(family), tmp_path / "final"
    train_actor.load(TrainSpec(role="policy", model_dir=released, image_root=str(pictures.root)))
    train_actor.save(str(final))
    # The names of the released folder, not those in memory; processor and chat template with it.
    assert tensor_names(final) == tensor_names(released)
    check_model_folder(final)
    assert (final / "chat_template.jinja").read_text() == (
        Path(released) / "chat_template.jinja"
    ).read_text()

    asked, results = tmp_path / "prompts.pickle", tmp_path / "results.json"
    asked.write_bytes(pickle.dumps(prompts))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.families.in_engine"),
            *(str(final), released, str(pictures.root), str(asked), str(results)),
        ],
        cwd=ROOT,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HUB_OFFLINE": "1",
            "TORCH_COMPILE_DISABLE": "1",  # as in a session on a CPU
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for column, gap in json.loads(results.read_text()).items():
        record(family, column, gap)
    record(family, "export", f"{len(tensor_names(final))} tensors")


@pytest.mark.parametrize("family", BUILDERS)
def test_every_trained_parameter_has_one_name_in_the_checkpoint(tiny_folder, family):
    vlm = load_vlm(tiny_folder(family))
    with torch.no_grad():
        for index, parameter in enumerate(vlm.parameters()):
            parameter.fill_(index)
    # Each parameter is filled with its own number, by which it is known again.
    sent = {name: tensor.flatten()[0].item() for name, tensor in checkpoint_tensors(vlm)}
    assert set(sent) == tensor_names(tiny_folder(family))
    assert {float(index) for index, _ in enumerate(vlm.parameters())} <= set(sent.values())
