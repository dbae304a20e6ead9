"""The arms of a comparison: names that are known, and how a list of them becomes settings.

An arm is a mapping of a run's settings (`cluster.config.RunConfig`) that differ from what all arms
share; `method` is the one that it must have.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, get_args

from trainers.config import MethodConfig
from trainers.data.errors import UserError

CATALOGUE: dict[str, dict[str, Any]] = {
    **{
        (name := str(method.model_fields["name"].default)): {"method": {"name": name}}
        for method in get_args(MethodConfig)
    },
    # Chance is a control: it is not asked to know good from bad.
    "random": {
        "method": {"name": "dpo"},
        "judge": "random",
        "judge_check": {"min_accuracy": 0.0},
    },
    "gt_dpo": {
        "method": {"name": "dpo"},
        "negatives": {"chosen": "data", "rejected": ["policy"]},
    },
    "seva": {
        "method": {"name": "dpo"},
        "negatives": {"rejected": ["noisy"], "noise_steps": [500, 800]},
    },
    "bpo": {
        "method": {"name": "dpo", "pairs": {"strategy": "all"}},
        "negatives": {"chosen": "data", "rejected": ["noisy", "injected"], "noise_steps": [900]},
    },
    "povid": {
        "method": {"name": "povid"},
        "negatives": {"chosen": "data", "rejected": ["injected"]},
    },
    "sapo": {
        "method": {"name": "sapo"},
        "negatives": {
            "chosen": "data",
            "rejected": ["segment"],
            "segment_tokens": 8,
            "segment_writer": "reference",
        },
    },
}
"""Known name -> the settings that it stands for: every method with its defaults; `random`, DPO with
scores drawn by chance instead of the judge: the floor; and pairs that are made (`negatives`)."""
DEFAULT_ARMS = ("ppo", "dpo", "nsft", "sft", "random")
RESERVED = ("base", "honest", "images")
"""Names that the run folder and the report use for something else."""
SHARED = ("name", "output", "seed", "model", "data", "eval", "placement", "num_threads")
"""Settings of a run that an arm cannot have of its own: where the comparison would no longer be on
equal prompts, from one base, against one truth."""


def expand_arms(value: object) -> dict[str, dict[str, Any]]:
    """Name -> settings, from a list of known names or from a mapping.

    In a mapping a known name may have more settings, and a new name needs `method.name`.

    Raises:
        UserError: a name is unknown, given twice or no folder's name; an arm sets what all arms
            share, or contradicts what its name stands for.
    """
    if isinstance(value, Mapping):
        return {str(name): _expanded(str(name), own) for name, own in value.items()}
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise UserError(f"arms: a list of names or a mapping was expected, as [ppo, dpo]: {value}")
    for name in value:
        if name not in CATALOGUE:
            raise UserError(f"arms: unknown arm {name!r}; {_known(name)}")
        if value.count(name) > 1:
            raise UserError(f"arms: {name} stands there twice; give one of them another name")
    return {name: _expanded(name, {}) for name in value}


def _expanded(name: str, own: object) -> dict[str, Any]:
    own = {} if own is None else own
    if not isinstance(own, Mapping):
        raise UserError(f"arms.{name}: a group of keys was expected (got {own!r})")
    if not re.fullmatch(r"\w+", name) or name in RESERVED:
        raise UserError(
            f"arms: {name!r} cannot be an arm's name: letters, digits and _, but not "
            f"{', '.join(RESERVED)}"
        )
    for key in SHARED:
        if key in own:
            raise UserError(
                f"arms.{name}.{key}: is the same for all arms; set {key}, where a comparison has it"
            )
    if name in CATALOGUE:
        return _merged(CATALOGUE[name], own, f"arms.{name}")
    method = own.get("method")
    if not isinstance(method, Mapping) or "name" not in method:
        raise UserError(f"arms.{name}: unknown arm, and no arms.{name}.method.name; {_known(name)}")
    return dict(own)


def _merged(fixed: Mapping[str, Any], own: Mapping[str, Any], path: str) -> dict[str, Any]:
    """`fixed` and `own` together; what a name stands for cannot be overridden."""
    merged = {**fixed, **own}
    for key, value in fixed.items():
        if isinstance(value, Mapping) and isinstance(own.get(key), Mapping):
            merged[key] = _merged(value, own[key], f"{path}.{key}")
        elif key in own and own[key] != value:
            raise UserError(
                f"{path}.{key}={own[key]}: this arm's name stands for {value}; give the arm a name "
                "of its own"
            )
    return merged


def _known(name: str) -> str:
    near = difflib.get_close_matches(name, CATALOGUE, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}valid: {', '.join(CATALOGUE)}"
