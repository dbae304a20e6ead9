"""What the benchmarks of a round share: a run's own session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import judges
from cluster.config import RunConfig
from cluster.config_text import validate
from cluster.run import Run, make_session, new_run, prepare, rollout_spec
from trainers.data.images import ImageStore


@contextmanager
def real_run(values: Mapping[str, Any], folder: Path) -> Iterator[Run]:
    """A run as `quartet train` makes it, with engine and judge loaded and no evaluation.

    Args:
        values: settings, as a configuration file has them.
        folder: where the run's own folder is made.
    """
    fixed = {"output": str(folder), "eval": {"num_curve_scenes": 0}}
    config = validate(RunConfig, {**values, **fixed})
    with new_run(config, config.method.name) as (console, run_folder):
        store = ImageStore(run_folder / "images")
        with make_session(config, console) as session:
            run = prepare(session, config, run_folder, store)
            session.load_rollout(rollout_spec(run))
            assert run.judge is not None
            judges.load_judge(session, run.judge, store, config)
            yield run
