"""What a user sees when something goes wrong: one line, and where the rest is written.

Errors that are meant for the user keep their message on the way out of a Ray actor; anything else
is named by role and call, and its traceback goes to the run's log.
"""

from __future__ import annotations

import re
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.exceptions import RayActorError, RayTaskError

from actors.weight_sync import CorruptBucketError
from cluster.console import Console
from trainers.data.errors import UserError

ROLES = {
    "RolloutActor": "rollout engine",
    "JudgeActor": "judge",
    "ReferenceActor": "reference",
    "TrainActor": "trainer",
}


class RunStoppedError(RuntimeError):
    """The run cannot go on; the message is one line for the user."""


class RunFailedError(RuntimeError):
    """Something unexpected; the message is one line that names the log with the traceback."""


@contextmanager
def surfaced() -> Iterator[None]:
    """Expected failures of an actor arrive as what they are: `UserError`, `RunStoppedError`."""
    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError | RunStoppedError):
            raise cause from None
        if isinstance(cause, FloatingPointError | CorruptBucketError):
            raise RunStoppedError(str(cause)) from None
        raise


@contextmanager
def reported(console: Console, folder: Path, *, new: bool = True) -> Iterator[None]:
    """Around a run: one line for every failure, the traceback in the log.

    A `new` run that is refused before its first round leaves no folder; one that fails, or is
    interrupted, stays as it is.

    Raises:
        UserError, RunStoppedError, KeyboardInterrupt: as they came.
        RunFailedError: anything else, and what has this line already.
    """
    try:
        with surfaced():
            yield
    except UserError:
        if new and not any(folder.rglob("round_*.msgpack")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    except RunStoppedError:
        raise
    except RunFailedError:
        console.log(traceback.format_exc())
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the user gets one line
        console.log(traceback.format_exc())
        log = folder / "run.log"
        raise RunFailedError(f"{one_line(error)}; the whole story is in {log}") from None


def one_line(error: Exception) -> str:
    """One line with role and call for what came from an actor."""
    if isinstance(error, RayTaskError):
        # Ray keeps the call only in the text.
        found = re.search(r"ray::(\w+)\.(\w+)\(", str(error))
        actor, call = found.groups() if found else ("an actor", "a task")
        return f"{ROLES.get(actor, actor)} failed in {call}: {_first(error.cause)}"
    if isinstance(error, RunStoppedError):
        return str(error)
    if isinstance(error, RayActorError):
        return (
            "a process of the run ended unexpectedly, most often for lack of memory (lower "
            "rollout.num_prompts, train.micro_batch_size or rollout.kv_cache_mib)"
        )
    return _first(error)


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:300]}"
