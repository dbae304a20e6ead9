"""Heads compute in float32 in whatever dtype they are held."""

from __future__ import annotations

import pytest
import torch

from actors import modules
from actors.modules import Float32Linear, ScoreHead, attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_held_in_any_dtype_takes_any_and_gives_float32(dtype):
    # 1 + 1/128 and 254 are exact in bf16; their product, 255.984375, would be 256
    layer = Float32Linear(1, 1, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.fill_(1 + 1 / 128)
    for held in (torch.float32, torch.bfloat16):
        out = layer(torch.full((2, 1), 254.0, dtype=held))
        assert out.dtype == torch.float32
        assert out[:, 0].tolist() == [254 * (1 + 1 / 128)] * 2


def test_a_new_score_head_gives_0():
    head = ScoreHead(4).to(torch.bfloat16)
    assert head(torch.randn(3, 4, dtype=torch.bfloat16)).tolist() == [0, 0, 0]


def test_flash_attention_is_taken_where_all_of_it_is_there(monkeypatch, tiny_model):
    assert attention(tiny_model, torch.float32) is None
    monkeypatch.setattr(modules, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, expected in (((7, 5), None), ((8, 0), "flash_attention_2")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda seen=capability: seen)
        assert attention(tiny_model, torch.bfloat16) == expected
        assert attention(tiny_model, torch.float32) is None
    monkeypatch.setattr(modules, "find_spec", lambda name: None)
    assert attention(tiny_model, torch.bfloat16) is None
