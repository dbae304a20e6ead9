"""Optimiser states on a disk: the same steps, and next to nothing of them in memory."""

from __future__ import annotations

from ctypes.util import find_library

import numpy as np
import pytest

from actors.train_spec import TrainSpec
from trainers.batch import Row
from trainers.config import SFTConfig
from trainers.method import Optimisation
from trainers.registry import make_method

pytestmark = [
    pytest.mark.deepspeed,
    pytest.mark.slow,  # compiles for minutes where it was not compiled before
    pytest.mark.timeout(1200),
    pytest.mark.skipif(find_library("aio") is None, reason="needs libaio"),
]


def test_states_on_a_disk_step_as_those_in_host_memory(
    train_actor, tiny_model, store, samples, tmp_path
):
    groups = [(Row.of_response(sample, (7, 8, 1), sample.id),) for sample in samples[:4]]
    optimisation = Optimisation(learning_rate=1e-3, epochs=2, minibatch_size=2)
    results, written = [], []
    for place in ("cpu", "nvme"):
        train_actor.load(
            TrainSpec(
                role="policy",
                model_dir=tiny_model,
                image_root=str(store.root),
                zero_stage=3,
                offload_optimizer=place,
                nvme_path=str(tmp_path),
            )
        )
        metrics = train_actor.train(groups, make_method(SFTConfig()), optimisation, seed=0)
        logprobs = np.concatenate(train_actor.score_rows([row for (row,) in groups]))
        held = train_actor.end_phase("train").parked["policy"]
        results.append((metrics["loss"], logprobs, held))
        written = [file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()]
    (loss, logprobs, in_host), (other_loss, other_logprobs, on_disk) = results
    assert loss == other_loss
    np.testing.assert_array_equal(logprobs, other_logprobs)
    # A master and two moments; a step counter stays in memory.
    assert sum(written) == 3 * in_host["masters"]
    assert on_disk.get("optimizer", 0) + on_disk.get("masters", 0) < 0.01 * in_host["optimizer"]
    train_actor.unload()
    assert not list(tmp_path.rglob("*.swp"))
