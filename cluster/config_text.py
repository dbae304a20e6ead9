"""Settings as text: YAML, dotted overrides, and errors of one line with the nearest valid key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from rewards.config import JUDGES
from trainers.config import METHODS, Settings
from trainers.data.errors import UserError

C = TypeVar("C", bound=Settings)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping; `UserError` names the file."""
    try:
        loaded = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also bytes that are no text
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(loaded, dict | None):
        raise UserError(f"{path}: a mapping of keys was expected")
    return loaded or {}


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set dotted keys: `["--method.kl_coef", "0.1"]` or `["--method.kl_coef=0.1"]`.

    Groups before what is in them, in whatever order they are given.
    """
    words, changes = list(overrides), []
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"{word!r}: options look like --rollout.num_prompts 64")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not words:
                raise UserError(f"--{key}: a value is missing")
            text = words.pop(0)
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise UserError(f"--{key}: {text!r} is not a value in YAML; quote it") from None
        changes.append((key.replace("-", "_"), value))
    for key, value in sorted(changes, key=lambda change: change[0].count(".")):
        set_key(values, key, value)
    return values


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making the groups on the way; a list of names becomes a group of them."""
    *parents, leaf = key.split(".")
    for parent in parents:
        group = values.get(parent)
        if isinstance(group, list | tuple) and all(isinstance(name, str) for name in group):
            group = dict.fromkeys(group)
        if group is not None and not isinstance(group, dict):
            raise UserError(f"{key}: {parent} is a value, not a group of keys")
        # A copy: the groups may be shared constants, `QUICK` for one.
        values[parent] = dict(group or {})
        values = values[parent]
    values[leaf] = value


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` applied key by key, into nested groups."""
    merged = dict(values)
    for key, value in changes.items():
        old = merged.get(key)
        nested = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if nested else value  # type: ignore[arg-type]
    return merged


def validate(model: type[C], values: Mapping[str, Any], source: str = "config") -> C:
    """`model` from plain values; the first problem becomes one line with the nearest valid key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # In one line, whatever the file's keys hold.
        reason = " ".join(explain(error, model, values).split())
        raise UserError(f"{source}: {reason}") from None


def explain(
    error: ValidationError, model: type[Settings], values: Mapping[str, Any], prefix: str = ""
) -> str:
    """The first problem in one line, with the nearest valid key; `prefix` is where `values` are."""
    problem = error.errors()[0]
    if isinstance(refused := problem.get("ctx", {}).get("error"), UserError):
        own = prefix.rstrip(".")
        return f"{own}: {refused}" if own else str(refused)  # settings that do not go together
    path = _keys(problem["loc"])
    key = prefix + ".".join(path)
    if problem["type"] == "extra_forbidden":
        group = _group_at(model, values, path[:-1])
        near = difflib.get_close_matches(path[-1], group, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(group)}"
        return f"unknown key {key!r}; {hint}"
    reason = problem["msg"][:1].lower() + problem["msg"][1:]
    if problem["type"] == "model_type":
        reason = f"a group of keys was expected: {', '.join(_group_at(model, values, path))}"
    return f"{key}: {reason} (got {problem.get('input')!r})"


def _keys(location: Sequence[int | str]) -> list[str]:
    """The keys of pydantic's location, which puts a method's or judge's name after its group."""
    path: list[str] = []
    skip = False
    for part in map(str, location):
        if skip and part in (*METHODS, *JUDGES):
            skip = False
            continue
        path.append(part)
        skip = part in ("method", "judge")
    return path


def _group_at(model: type[Settings], values: Any, path: Sequence[str]) -> list[str]:
    """Names of the valid keys of the group at `path`."""
    current: Any = model
    for part in path:
        if part.isdigit():  # an item of a list: its settings were found with the list
            values = values[int(part)] if isinstance(values, Sequence) else {}
            continue
        values = values.get(part, {}) if isinstance(values, Mapping) else {}
        name = str(values.get("name")) if isinstance(values, Mapping) else ""
        if part == "method":
            current = METHODS.get(name, METHODS["ppo"])
        elif part == "judge":
            current = JUDGES[name]
        else:
            current = _settings_in(current.model_fields[part].annotation)
    return sorted(current.model_fields)


def _settings_in(annotation: Any) -> Any:
    """The settings class of `X`, `X | None` or `tuple[X, ...]`."""
    classes = [a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, Settings)]
    return classes[0] if classes else annotation


class _Dumper(yaml.SafeDumper):
    """Lists and the groups of arms on few lines, so that a whole configuration stays under 100."""


class _Flow(dict[str, Any]):
    """A group that is written between braces."""


for _kind in (list, tuple):
    _Dumper.add_representer(
        _kind,
        lambda dumper, data: dumper.represent_sequence(
            "tag:yaml.org,2002:seq", data, flow_style=True
        ),
    )
_Dumper.add_representer(
    _Flow,
    lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=True),
)


ON_ONE_LINE = {"judge_check", "placement", "overlap", "deadlines", "checkpoint"}
"""Groups that are written between braces: short ones, which few runs change."""


def to_yaml(config: Settings) -> str:
    """Every setting with its value, in the order of the schema."""
    values = config.model_dump()
    for group in ON_ONE_LINE & values.keys():
        values[group] = _Flow(values[group])
    for arm in values.get("arms", {}).values():
        arm |= {key: _Flow(own) for key, own in arm.items() if isinstance(own, dict)}
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=100))
