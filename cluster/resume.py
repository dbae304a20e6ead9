"""`--resume`: go on with a run that was stopped, killed, or is to have more rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.config import CompareConfig, RunConfig
from cluster.config_text import merge, read_yaml, validate
from cluster.run_state import read_state
from trainers import checkpoint
from trainers.checkpoint import CHECKPOINTS
from trainers.data.errors import UserError

FREE = (
    "rounds",
    "num_threads",
    "checkpoint",
    "deadlines",
    "placement",
    "train.num_ranks",
    "train.zero_stage",
    "train.micro_batch_size",
    "train.max_tokens_per_micro_batch",
    "train.packing",
    "train.share_images",
    "train.logprob_chunk",
    "train.gradient_checkpointing",
    "train.offload_optimizer",
    "train.time_slice",
    "train.bucket_mib",
    "rollout.kv_cache_mib",
    "rollout.gpu_memory_utilization",
    "rollout.sleep",
)
"""Settings, and groups of them, that may change: how long the run is, and where its copies are.
They change results by rounding at most; every other one would make it another run."""
ABANDONED = "run.abandoned.log"
"""What the log said after the checkpoint that a run goes on from."""


def resume_train(folder: Path, overrides: Mapping[str, Any]) -> int:
    """Go on with the run in `folder` after its latest checkpoint; without one it starts again.
    Returns the exit code.
    """
    values = recorded(folder)
    if "arms" in values:
        raise UserError(f"{folder}: this is a comparison; go on with quartet compare --resume")
    if not (folder / CHECKPOINTS).is_dir():
        raise UserError(
            f"{folder}: no {CHECKPOINTS}; this is no run of quartet train, or one with "
            "checkpoint.every=0"
        )
    config = validate(RunConfig, changed(values, overrides), str(folder))
    prepare(folder)
    from cluster.run import train

    return train(config, folder)


def resume_compare(folder: Path, overrides: Mapping[str, Any]) -> int:
    """Go on with the comparison in `folder`: finished arms stay, the arm that was under way goes on
    after its latest checkpoint. Returns the exit code.
    """
    values = recorded(folder)
    if "arms" not in values:
        raise UserError(f"{folder}: this is a single run; go on with quartet train --resume")
    config = validate(CompareConfig, changed(values, overrides), str(folder))
    for name in config.arms:
        prepare(folder / name)
    from cluster.compare import compare

    return compare(config, resumed=folder)


def recorded(folder: Path) -> dict[str, Any]:
    """The settings in a run's folder."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: no config.yaml; give the folder of a run")
    return read_yaml(path)


def changed(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with what may change of them.

    Raises:
        UserError: something else was to be changed; names the first such key.
    """
    for key in _keys(overrides):
        if not any(key == free or key.startswith(f"{free}.") for free in FREE):
            raise UserError(
                f"--{key}: a resumed run keeps its settings; free to change are {', '.join(FREE)}"
            )
    return merge(values, overrides)


def prepare(folder: Path) -> None:
    """Check the latest checkpoint of a run, and take what its log said after it to another file.

    Raises:
        UserError: the checkpoint is damaged; names what it lacks.
    """
    root = folder / CHECKPOINTS
    if not (numbers := checkpoint.rounds(root)):
        return
    path = checkpoint.folder(root, numbers[-1])
    checkpoint.verify(path)
    size, log = read_state(path).log, folder / "run.log"
    if log.is_file() and log.stat().st_size > size:
        with log.open("r+b") as file:
            file.seek(size)
            with (folder / ABANDONED).open("ab") as rest:
                rest.write(file.read())
            file.truncate(size)


def _keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key
