"""Images in only some rows: no rank waits for another's vision tower, and nothing changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import ray
import torch

from tests.actors.rank_steps import load_policy, pair_of, sent_weights
from trainers.config import DPOConfig
from trainers.data.records import Turn
from trainers.method import Optimisation
from trainers.registry import make_method

pytestmark = [pytest.mark.ray, pytest.mark.deepspeed, pytest.mark.timeout(240)]


def mixed(samples):
    """Pairs in turn with and without an image: rank 0's all have one, rank 1's have none."""
    groups = []
    for index, sample in enumerate(samples[:8]):
        if index % 2:
            text = Turn(role="user", text=sample.prompt[-1].text, num_images=0)
            sample = replace(sample, prompt=(text,), images=())
        groups.append(pair_of(index, sample))
    return groups


def step(session, model, store, groups, zero_stage):
    group = load_policy(session, model, str(store.root), zero_stage=zero_stage)
    rows = [row for pair in groups for row in pair]
    before = np.concatenate(group.score_rows(rows))
    optimisation = Optimisation(learning_rate=1e-3, epochs=1, minibatch_size=8)
    method = make_method(DPOConfig())
    metrics = ray.get(group.call("train", groups, method, optimisation, seed=0), timeout=90)
    return before, metrics[0]["loss"], sent_weights(group)


@pytest.mark.slow
@pytest.mark.parametrize("images", ["some", "none"])
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_ranks_of_which_one_has_images(
    shared_session, tiny_model, store, samples, zero_stage, images
):
    from cluster.session import Session

    two = Session(num_threads=1, console=shared_session.console, num_ranks=2)
    groups = mixed(samples)
    if images == "none":
        groups = groups[1::2]
    one_scores, one_loss, one = step(shared_session, tiny_model, store, groups, 0)
    try:
        scores, loss, weights = step(two, tiny_model, store, groups, zero_stage)
    finally:
        two.forget("policy")
    np.testing.assert_allclose(scores, one_scores, atol=1e-4)
    assert loss == pytest.approx(one_loss, abs=1e-5)
    gaps = torch.cat([(weights[name] - tensor).abs().flatten() for name, tensor in one.items()])
    assert float((gaps > 1e-6).float().mean()) < 1e-3


@pytest.mark.parametrize("length", [3, 60])
def test_a_spare_row_changes_no_hidden_state(tiny_model, length):
    from actors.modules import load_vlm
    from actors.spare_image import run_tower_always

    vlm = load_vlm(tiny_model)
    ids_BT = torch.randint(5, 30, (2, length))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 2:] = 0
    call = {"input_ids": ids_BT, "attention_mask": mask_BT, "use_cache": False}
    plain_BTH = vlm.model(**call).last_hidden_state
    run_tower_always(vlm, tiny_model, 2)
    run_tower_always(vlm, tiny_model, 2)  # once is enough
    hidden_BTH = vlm.model(**call).last_hidden_state
    torch.testing.assert_close(hidden_BTH, plain_BTH)
    hidden_BTH[mask_BT > 0].sum().backward()
    tower = [p.grad for name, p in vlm.named_parameters() if "vision_tower" in name]
    assert any(grad is not None for grad in tower)
    assert all(grad is None or not grad.any() for grad in tower)
