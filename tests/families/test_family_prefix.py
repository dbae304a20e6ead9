"""Why Gemma 3 and PaliGemma are not among the families: measured, not supposed (`prefix_lm.py`)."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.families.prefix_lm import BUILDERS, token_types
from tests.families.table import NOT_SUPPORTED
from trainers.data.errors import UserError
from trainers.data.model_folder import FAMILIES, check_model_folder

ROOT = Path(__file__).parents[2]


def test_they_are_refused_by_name(tmp_path):
    assert set(BUILDERS) == set(NOT_SUPPORTED) and not set(BUILDERS) & set(FAMILIES)
    for family in BUILDERS:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
        with pytest.raises(UserError, match=f"model_type '{family}' is not supported"):
            check_model_folder(tmp_path)


def test_where_attention_goes_both_ways():
    ids_T = torch.tensor([1, 9, 9, 2, 3, 4])  # 9: the image's, and 3, 4 the response
    assert token_types("gemma3", ids_T, 9, 4).tolist() == [[0, 1, 1, 0, 0, 0]]
    assert token_types("paligemma", ids_T, 9, 4).tolist() == [[0, 0, 0, 0, 1, 1]]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("family", BUILDERS)
def test_the_engine_reads_prompts_otherwise(pictures, prompts, tmp_path, family, record):
    asked, results = tmp_path / "prompts.pickle", tmp_path / "results.json"
    asked.write_bytes(pickle.dumps([prompts[0]]))
    arguments = (family, tmp_path / "model", pictures.root, asked, results)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "tests.families.prefix_lm", *map(str, arguments)],
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
    measured = json.loads(results.read_text())
    if family == "paligemma":
        assert "prompt tokens where training reads" in measured["dropped"]
    else:
        assert measured["causal"] < 1e-5 < 1e-3 < measured["own"]
    for key, value in measured.items():
        record(family, key, value)
