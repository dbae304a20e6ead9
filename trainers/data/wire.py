"""Records as plain dicts and back, checked against the annotations of `trainers.data.records`.

`to_wire` writes every field, defaults included; `from_wire` accepts exactly that, except that a
field marked `LATER` may be missing, as it is in older files. Being strict both ways means that a
file never holds a record that its own reader refuses, and that a renamed field is an error that
names it instead of a default that hides it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

from trainers.data.errors import UserError
from trainers.data.records import LATER, Record

RECORD_TYPES: dict[str, type[Any]] = {cls.__name__: cls for cls in typing.get_args(Record)}

Decode = Callable[[Any], Any]


def to_wire(record: Record) -> dict[str, Any]:
    """`{"type": class name, field: value, ...}` of plain values; nested records carry no type."""
    return {"type": type(record).__name__, **_fields_of(record)}


def from_wire(wire: dict[str, Any], where: str = "record") -> Record:
    """The record that `to_wire` turned into `wire`; `where` (file and frame) starts any message.

    Raises `UserError` for an unknown type, an unknown or missing field, or a value of another
    type than the field's annotation. `from_wire(to_wire(r)) == r` for every record whose `truth`
    holds dicts, lists, strings, numbers, booleans and None.
    """
    if not isinstance(wire, dict):
        raise UserError(f"{where}: expected a map with a key 'type', got {type(wire).__name__}")
    fields = dict(wire)
    name = fields.pop("type", None)
    if not isinstance(name, str) or name not in RECORD_TYPES:
        known = ", ".join(RECORD_TYPES)
        raise UserError(f"{where}: unknown record type {name!r}; this version knows {known}")
    try:
        record: Record = _DECODERS[name](fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {name}{' '.join(str(error).split())}") from error
    return record


def _fields_of(record: Any) -> dict[str, Any]:
    return {f.name: _plain(getattr(record, f.name)) for f in dataclasses.fields(record)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _fields_of(value)
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return [_fields_of(item) for item in value]
    return value


def _mismatch(value: Any, expected: str) -> ValueError:
    return ValueError(f": expected {expected}, got {type(value).__name__}")


def _scalar_decoder(kind: type) -> Decode:
    def decode(value: Any) -> Any:
        # bool is an int to Python, never to a record.
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _mismatch(value, kind.__name__)
        return value

    return decode


def _decode_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _mismatch(value, "bool")
    return value


def _decode_float(value: Any) -> float:
    if not isinstance(value, float | int) or isinstance(value, bool):
        raise _mismatch(value, "float")
    return float(value)


def _literal_decoder(allowed: tuple[Any, ...]) -> Decode:
    def decode(value: Any) -> Any:
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f": expected one of {', '.join(allowed)}, got {value!r}")
        return value

    return decode


def _union_decoder(inner: Decode) -> Decode:
    return lambda value: None if value is None else inner(value)


def _tuple_decoder(inner: Decode) -> Decode:
    def decode(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise _mismatch(value, "list")
        return tuple(map(inner, value))

    return decode


def _dict_decoder(inner: Decode) -> Decode:
    def decode(value: Any) -> Any:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise _mismatch(value, "map with string keys")
        return {key: inner(item) for key, item in value.items()}

    return decode


def _dataclass_decoder(cls: type[Any]) -> Decode:
    hints = typing.get_type_hints(cls)
    decoders = {f.name: _decoder(hints[f.name]) for f in dataclasses.fields(cls)}
    later = {f.name for f in dataclasses.fields(cls) if f.metadata == LATER}

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _mismatch(value, f"map of {cls.__name__}")
        missing = decoders.keys() - value.keys() - later
        unknown = value.keys() - decoders.keys()
        if missing or unknown:
            names = f"missing fields {sorted(missing)}, unknown fields {sorted(map(str, unknown))}"
            raise ValueError(f": {names}")
        fields = {}
        for name, item in value.items():
            try:
                fields[name] = decoders[name](item)
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f".{name}{error}") from error
        try:
            return cls(**fields)
        except ValueError as error:  # the record's own invariant
            raise ValueError(f": {error}") from error

    return decode


def _decoder(hint: Any) -> Decode:
    """The checker of one annotation; the kinds that records use, and no more."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value: value
    if hint is float:
        return _decode_float
    if hint is bool:
        return _decode_bool
    if hint in (str, int):
        return _scalar_decoder(hint)
    if origin is Literal:
        return _literal_decoder(args)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (arg for arg in args if arg is not types.NoneType)
        return _union_decoder(_decoder(inner))
    if origin is tuple:
        return _tuple_decoder(_decoder(args[0]))
    if origin is dict:
        return _dict_decoder(_decoder(args[1]))
    assert dataclasses.is_dataclass(hint), f"no decoder for {hint}"
    return _dataclass_decoder(typing.cast("type[Any]", hint))


_DECODERS: dict[str, Decode] = {name: _dataclass_decoder(cls) for name, cls in RECORD_TYPES.items()}
