"""DPO pairs by hand, a policy on some ranks, and what it sends after a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from torch import Tensor

from trainers.batch import Row
from trainers.data.records import Sample


def pair_of(index: int, sample: Sample) -> tuple[Row, ...]:
    """Chosen and rejected of different lengths, which depend on `index`."""
    rows = []
    for side, length in enumerate((2 + index, 9 - index)):
        ids = (*range(8 + index, 8 + index + length - 1), 1)
        row = Row.of_response(sample, ids, f"{index}/{side}", margin=1.0)
        row.tokens["ref_logprobs"] = np.full(length, -2.0, np.float32)
        rows.append(row)
    return tuple(rows)


def seven_pairs(samples: Sequence[Sample]) -> list[tuple[Row, ...]]:
    """A number that neither two nor four ranks share evenly."""
    return [pair_of(index, sample) for index, sample in enumerate(samples[:7])]


def load_policy(session: Any, model_dir: str, image_root: str, **options: Any) -> Any:
    """The session's policy on its ranks, two rows in a micro-batch."""
    from actors.train_spec import TrainSpec

    values = {"micro_batch_size": 2} | options
    spec = TrainSpec(role="policy", model_dir=model_dir, image_root=image_root, **values)
    session.load_trainer("policy", spec)
    return session.trainer("policy")


def sent_weights(group: Any) -> dict[str, Tensor]:
    """What the policy sends, but for biases whose gradient is nothing but rounding noise (see
    test_train_actor).
    """
    from actors.weight_sync import open_bucket

    return {
        name: tensor
        for bucket in ray.get(group.call("weight_buckets", 2**20)[0], timeout=60)
        for name, tensor in open_bucket(bucket)
        if "k_proj.bias" not in name
    }
