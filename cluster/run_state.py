"""`state.json` of a checkpoint: what a run goes on from, besides the trained copies' own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from trainers.comparison import MethodResult
from trainers.data.errors import UserError
from trainers.json_files import first_problem
from trainers.random_state import check_random_state, check_state_of

STATE = "state.json"


def _generator(state: list[Any]) -> list[Any]:
    check_state_of(state)
    return state


def _generators(state: dict[str, Any]) -> dict[str, Any]:
    check_random_state(state)
    return state


class BestState(BaseModel):
    """The best round so far (`eval.keep_best`)."""

    model_config = ConfigDict(extra="forbid")

    round: int
    value: float


class RunState(BaseModel):
    """The state of one run of one method after a round. No field has a default: a file that lacks
    one is refused.
    """

    model_config = ConfigDict(extra="forbid")

    round: int
    """The last finished round: of the prompts, those of the next one come now."""
    method: str
    seed: int
    trained: list[str]
    """Copies with files in `engine/`."""
    ranks: int
    rng: Annotated[list[Any], AfterValidator(_generator)]
    """The loop's generator: selection draws from it."""
    random: Annotated[dict[str, Any], AfterValidator(_generators)]
    """The driver's own generators."""
    method_state: dict[str, Any]
    policy_version: int | None
    """How many syncs the rollout engine has had."""
    best: BestState | None
    result: MethodResult
    """Curve and counters so far."""
    spans: list[tuple[str, float, float]]
    """The clock: phase, start and end."""
    files: dict[str, int]
    """Files that grow -> their size then: what was written later is cut off."""
    log: int
    """Size of the run's log."""
    made_of: dict[str, str]
    """Fingerprints of models and data."""


def read_state(checkpoint: Path) -> RunState:
    """The state in a checkpoint's folder.

    Raises:
        UserError: it is missing or lacks something; names file and key.
    """
    path = checkpoint / STATE
    try:
        return RunState.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path}: the checkpoint lacks this file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged ({error}); restore it from a copy") from None
    except ValidationError as error:
        raise UserError(
            f"{path}: {first_problem(error)}; the checkpoint is damaged or from another "
            "version of quartet, which would have to go on with it"
        ) from None
