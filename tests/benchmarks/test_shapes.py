"""Families in miniature are built, fed and read."""

from __future__ import annotations

import pytest
import torch

from actors.modules import PolicyModule, load_vlm
from benchmarks.shapes import TINY, WIDE_HEAD, image_tokens, miniature
from cluster.bench_models import find_model
from trainers.batch import Row, collate, encode_row
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.data.scenes import scene_samples


@pytest.mark.parametrize(
    ("name", "tokens"), [("llava-1.5-7b", 16), ("smolvlm2-500m", 4), ("qwen2.5-vl-3b", 400)]
)
def test_a_family_in_miniature_sees_its_image(tmp_path, name, tokens):
    # 4 x 4 patches; 4 x 4 patches, 4 to a token; 20 x 20 squares, the nearest to 391 above.
    model = find_model(str(miniature(name, TINY[name], tmp_path)), tmp_path)
    model.build(torch.float32)
    assert image_tokens(model.folder) == tokens
    store = ImageStore(tmp_path / "images")
    processing = Processing(model.folder, store)
    (sample,) = scene_samples(0, 1, store.put_image)
    row = Row.of_response(sample, (8, 9, processing.eos_id), "r")
    batch = collate([row], [encode_row(row, processing)], processing)
    module = PolicyModule(load_vlm(model.folder), banned_ids=processing.banned_ids())
    with torch.no_grad():
        seen = module(batch).logprobs_BR
        batch.model_inputs["pixel_values"] = -batch.model_inputs["pixel_values"]
        other = module(batch).logprobs_BR
    assert seen.shape == (1, 3) and torch.isfinite(seen).all()
    assert not torch.equal(seen, other)


def test_the_wide_head_has_a_real_vocabulary(tmp_path):
    model = find_model(str(miniature("llava-1.5-7b", WIDE_HEAD, tmp_path)), tmp_path)
    assert model.architecture.vocab_size == 32064
    assert model.architecture.config.image_token_id == 32000
