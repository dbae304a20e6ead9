"""What a reload of old would spoil; that weights come whole is in `test_engine.py`."""

from __future__ import annotations

import torch
from torch import nn

from actors.loading import computed_buffers, restore, unwrap


def model() -> nn.Module:
    """A layer with a weight, positions and running statistics, and one that holds only a table."""
    embedding, table = nn.Embedding(3, 2), nn.Module()
    embedding.register_buffer("positions", torch.arange(3), persistent=False)
    embedding.register_buffer("in_the_checkpoint", torch.zeros(1))
    table.register_buffer("cosines", torch.ones(4), persistent=False)
    return nn.Sequential(embedding, table)


def test_only_what_a_layer_with_weights_computed_is_copied():
    found = computed_buffers(model())
    assert [(type(module), name) for module, name, _ in found] == [(nn.Embedding, "positions")]


def test_layers_that_take_adapters_have_the_checkpoints_names_meanwhile():
    inner = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    known = set(inner.state_dict())
    adapted = nn.Module()
    adapted.base_layer, inner[0] = inner[0], adapted
    assert set(inner.state_dict()) != known
    assert unwrap(inner) == [(inner, "0", adapted)]
    assert set(inner.state_dict()) == known


def test_buffers_come_back_in_place_and_stay_out_of_the_checkpoint():
    vlm = model()
    layer = vlm[0]
    address, known = layer.positions.data_ptr(), set(vlm.state_dict())
    computed = computed_buffers(vlm)
    layer.positions.fill_(99)  # as vLLM 0.24 leaves it: another's values, and a weight
    layer.register_buffer("positions", layer.positions)
    assert set(vlm.state_dict()) != known
    restore(computed)
    assert layer.positions.tolist() == [0, 1, 2]
    assert layer.positions.data_ptr() == address
    assert set(vlm.state_dict()) == known
