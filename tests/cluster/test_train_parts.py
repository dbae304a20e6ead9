"""`train.freeze` and `train.liger`: what is refused, and with which remedy."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from cluster.config import RunConfig
from cluster.config_text import validate
from trainers.data.errors import UserError


def refusal(**settings) -> str:
    with pytest.raises(UserError) as caught:
        validate(RunConfig, {"method": {"name": "dpo"}, "train": settings}, "run.yaml")
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_parts_are_frozen_by_name():
    values = {"method": {"name": "dpo"}, "train": {"freeze": ["vision"]}}
    assert validate(RunConfig, values, "run.yaml").train.freeze == ("vision",)
    assert "nothing is left to train" in refusal(freeze=("vision", "projector", "language"))


def test_adapters_and_frozen_parts_exclude_each_other():
    assert "train.lora_vision" in refusal(freeze=("vision",), lora_rank=4)


@pytest.mark.skipif(find_spec("liger_kernel") is not None, reason="liger-kernel is installed")
def test_liger_without_its_package():
    assert "pip install liger-kernel" in refusal(liger=True)
